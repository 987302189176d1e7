// The studies: how far their jobs are, and their reports to save.

import { ask, follow, json, Refusal } from "./api.js";
import { element, row, say, table } from "./element.js";
import { age, clock, whole } from "./format.js";
import { save } from "./job.js";

const LABELS = ["State", "Study", "Jobs", "Progress", "Report", "Submitted"];
const ON_A_PAGE = 30;

export function showStudies(main, query, signal) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const { node, body } = table("Studies, newest first", LABELS);
  const empty = element("div", { class: "empty" }, element("p", {}, "Loading the studies …"));
  const older = element("a", { class: "button", hidden: true }, "Older studies");
  node.hidden = true;
  main.replaceChildren(element("div", { class: "title" }, element("h1", {}, "Studies")), trouble, node, empty, older);
  const showRefusal = (refusal) => {
    trouble.hidden = refusal === null;
    if (refusal) say(trouble, refusal.message);
  };
  const rows = new Map();
  const asked = new URLSearchParams({ limit: ON_A_PAGE, ...(query.get("cursor") && { cursor: query.get("cursor") }) });
  follow(2, signal, async () => {
    const { data, next_cursor } = await json(`/v1/studies?${asked}`, { signal });
    for (const study of data) {
      if (!rows.has(study.id)) rows.set(study.id, new StudyRow(study, signal, showRefusal));
      rows.get(study.id).update(study);
    }
    const wanted = data.map((study) => rows.get(study.id).node);
    // Rows that stay are left where they are, so that the focus stays too.
    if (wanted.length !== body.children.length || wanted.some((one, i) => one !== body.children[i])) body.replaceChildren(...wanted);
    node.hidden = data.length === 0;
    empty.hidden = data.length > 0;
    if (data.length === 0) empty.replaceChildren(...NOTHING());
    older.hidden = next_cursor === null;
    if (next_cursor !== null) older.href = `#/studies?${new URLSearchParams({ cursor: next_cursor })}`;
  }, showRefusal);
}

const NOTHING = () => [
  element("p", {}, "There is no study yet. Run one from a terminal:"),
  element("pre", {}, "amaml study run examples/studies/small-synthetic.yaml --watch"),
];

class StudyRow {
  constructor(study, signal, showRefusal) {
    Object.assign(this, { study, signal, showRefusal });
    const name = study.name || `Study ${study.id}`;
    this.state = element("span");
    this.counts = element("span");
    this.bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
    this.done = element("span", { class: "small" });
    this.age = element("time", { datetime: study.created_at, title: clock(study.created_at) });
    const axes = Object.entries(study.grid).map(([axis, values]) => `${values.length} × ${axis.slice(1).replaceAll("/", ".")}`);
    this.node = row(
      LABELS, this.state, element("div", { class: "stack" }, name, element("span", { class: "small" }, axes.join(", "))), this.counts,
      element("div", { class: "stack" }, this.bar, this.done),
      element("button", { type: "button", click: () => this.#save(), "aria-label": `Save the report of ${name}` }, "Save as HTML"), this.age,
    );
  }

  update(study) {
    this.state.className = `badge ${study.state === "finished" ? (study.states.succeeded === study.cells ? "succeeded" : "failed") : study.state}`;
    say(this.state, study.state);
    say(this.counts, Object.entries(study.states).map(([state, count]) => `${count} ${state}`).join(", "));
    this.bar.max = study.progress.iterations;
    this.bar.value = study.progress.iteration;
    say(this.done, `${whole(study.progress.iteration)} of ${whole(study.progress.iterations)}`);
    say(this.age, age(study.created_at));
  }

  /** The page stands alone, so it is saved rather than shown under this page's policy, which forbids its styles. */
  async #save() {
    try {
      const answer = await ask(`${this.study.links.report}?format=html`, { signal: this.signal });
      save(await answer.blob(), `study-${this.study.id}.html`);
      this.showRefusal(null);
    } catch (problem) {
      if (this.signal.aborted) return;
      if (!(problem instanceof Refusal)) throw problem;
      this.showRefusal(problem);
    }
  }
}
