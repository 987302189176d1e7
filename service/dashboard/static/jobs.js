// The list of jobs: a page of it, kept up to date row by row.

import { follow, json } from "./api.js";
import { element, row, say, table } from "./element.js";
import { age, clock, duration, short, whole } from "./format.js";
import { ACCURACY, FLOW, META_LOSS, NRMSE, TUNED, score } from "./metrics.js";

const LABELS = ["State", "Job", "Progress", "Meta-loss", "On unseen tasks", "Submitted"];
const STATES = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"];
const ON_A_PAGE = 30;

export function showJobs(main, query, signal) {
  const state = STATES.includes(query.get("state")) ? query.get("state") : null;
  const choice = element(
    "select", { id: "state", change: () => { location.hash = choice.value ? `#/jobs?state=${choice.value}` : "#/jobs"; } },
    element("option", { value: "" }, "every state"),
    ...STATES.map((one) => element("option", { value: one, selected: one === state }, one)),
  );
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const { node, body } = table("Jobs, newest first", LABELS);
  const empty = element("div", { class: "empty" }, element("p", {}, "Loading the jobs …"));
  const older = element("a", { class: "button", hidden: true }, "Older jobs");
  node.hidden = true;
  main.replaceChildren(
    element("div", { class: "title" }, element("h1", {}, "Jobs"), element("label", { for: "state" }, "State ", choice)),
    trouble, node, empty, older,
  );
  const rows = new Map();
  const asked = new URLSearchParams({ limit: ON_A_PAGE, ...(state && { state }), ...(query.get("cursor") && { cursor: query.get("cursor") }) });

  const look = async () => {
    const { data, next_cursor } = await json(`/v1/jobs?${asked}`, { signal });
    for (const job of data) {
      if (!rows.has(job.id)) rows.set(job.id, new JobRow(job));
      rows.get(job.id).update(job);
    }
    const wanted = data.map((job) => rows.get(job.id).node);
    // Rows that stay are left where they are, so that the focus stays too.
    if (wanted.length !== body.children.length || wanted.some((one, i) => one !== body.children[i])) body.replaceChildren(...wanted);
    node.hidden = data.length === 0;
    empty.hidden = data.length > 0;
    if (data.length === 0) empty.replaceChildren(...nothing(state));
    older.hidden = next_cursor === null;
    if (next_cursor !== null) older.href = `#/jobs?${new URLSearchParams({ ...(state && { state }), cursor: next_cursor })}`;
  };
  follow(2, signal, look, (refusal) => {
    trouble.hidden = refusal === null;
    if (refusal) say(trouble, refusal.message);
  });
}

function nothing(state) {
  if (state) return [element("p", {}, `No job is ${state}. `, element("a", { href: "#/jobs" }, "Show every job."))];
  return [
    element("p", {}, "There is no job yet. Submit one from a terminal:"),
    element("pre", {}, "amaml submit examples/sinusoid.json --watch"),
    element("p", {}, "or over HTTP, as ", element("a", { href: "/docs" }, "the API's reference"), " shows."),
  ];
}

class JobRow {
  constructor(job) {
    this.state = element("span");
    this.name = element("a", { href: `#/jobs/${job.id}` }, title(job));
    this.bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${title(job)}` });
    this.done = element("span", { class: "small" });
    this.loss = element("span", { class: "number" });
    this.score = element("span", { class: "number" });
    this.age = element("time", { datetime: job.created_at, title: clock(job.created_at) });
    const what = element("span", { class: "small" }, `${job.spec.family.kind} · ${job.spec.method.kind}`);
    this.node = row(
      LABELS, this.state, element("div", { class: "stack" }, this.name, what),
      element("div", { class: "stack" }, this.bar, this.done), this.loss, this.score, this.age,
    );
  }

  update(job) {
    showState(this.state, job.state);
    showProgress(this.bar, this.done, job);
    say(this.loss, short(job.metrics[META_LOSS]));
    say(this.score, onUnseenTasks(job.metrics));
    say(this.age, age(job.created_at));
  }
}

/** How unseen tasks are done after fine-tuning, by the family's own metric. */
function onUnseenTasks(metrics) {
  const [error, right] = [NRMSE, ACCURACY].map((metric) => metrics[score(metric, TUNED)] ?? metrics[score(metric, FLOW)]);
  return right === undefined ? short(error) : `${(100 * right).toFixed(1)} % right`;
}

/** Jobs needn't have names. */
export const title = (job) => job.name || `Job ${job.id}`;

export function showState(node, state) {
  node.className = `badge ${state}`;
  say(node, state);
}

export function showProgress(bar, text, job) {
  const { iteration, iterations, eta_seconds } = job.progress;
  bar.max = iterations;
  bar.value = iteration;
  const left = job.state === "running" && eta_seconds !== null ? `, ${duration(eta_seconds)} left` : "";
  const phase = job.state === "running" && job.phase && job.phase !== "training" ? `, ${job.phase}` : "";
  say(text, `${whole(iteration)} of ${whole(iterations)}${phase}${left}`);
}
