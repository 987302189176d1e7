// A job's page: what it is at, its curves, its events, and the buttons that steer it.

import { ask, follow, json, Refusal } from "./api.js";
import { charts } from "./curves.js";
import { element, row, say, table } from "./element.js";
import { age, bytes, clock, duration, short, whole } from "./format.js";
import { showProgress, showState, title } from "./jobs.js";

const ATTEMPT_LABELS = ["Attempt", "Worker", "Started", "Ended", "Why it ended"];
const FINAL = ["succeeded", "failed", "cancelled"];
const MAY = {
  cancel: ["queued", "running", "pausing", "paused"],
  pause: ["queued", "running"],
  resume: ["paused"],
  extend: ["succeeded"],
};
const SHOWN_EVENTS = 200;
const CURVES_EVERY_MS = 2500;

export async function showJob(main, id, signal) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const showRefusal = (refusal) => {
    trouble.hidden = refusal === null;
    if (refusal) say(trouble, refusal.status === 404 ? "There is no such job, or it belongs to another workspace." : refusal.message);
  };
  const back = element("p", {}, element("a", { href: "#/jobs" }, "← All jobs"));
  main.replaceChildren(back, trouble, element("p", { class: "empty" }, "Loading the job …"));
  const own = `/v1/jobs/${encodeURIComponent(id)}`;
  let page = null;
  let etag = null;
  const watch = () => follow(1, signal, async () => {
    const answer = await ask(own, { signal, headers: etag ? { "If-None-Match": etag } : {} });
    etag = answer.headers.get("ETag");
    const job = answer.status === 304 ? page.job : await answer.json();
    if (page === null) {
      page = new Page(job, own, signal, watch);
      main.replaceChildren(back, trouble, ...page.nodes);
    }
    await page.update(job, answer.status !== 304);
    return !(FINAL.includes(job.state) && page.complete);
  }, showRefusal);
  await watch();
}

class Page {
  /** `watch` keeps the page up to date until the job has ended. */
  constructor(job, own, signal, watch) {
    Object.assign(this, { job, own, signal, watch, lastEvent: 0, curvesAt: 0, complete: false });
    this.state = element("span", { role: "status" });
    this.detail = element("p", { class: "detail" });
    this.bar = element("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.done = element("span");
    this.note = element("p", { class: "note", role: "status" });
    this.buttons = {
      pause: this.#button("Pause", () => this.#steer("pause")),
      resume: this.#button("Resume", () => this.#steer("resume")),
      extend: this.#button("Extend", () => this.#askHowFar()),
      cancel: this.#button("Cancel", () => this.sure.showModal()),
      download: this.#button("Download the initialization", () => this.#download()),
    };
    this.sure = this.#question();
    this.howFar = this.#howFarQuestion();
    this.facts = element("dl", { class: "facts" });
    this.charts = charts(job.spec);
    this.attempts = table("Attempts", ATTEMPT_LABELS);
    this.events = element("ol", { class: "events" });
    const spec = element("details", {}, element("summary", {}, "Spec, with every default written out"), element("pre", {}, JSON.stringify(job.spec, null, 2)));
    this.nodes = [
      element("div", { class: "title" }, element("h1", {}, title(job)), this.state),
      this.detail,
      element("div", { class: "progress" }, this.bar, this.done),
      element("div", { class: "buttons" }, ...Object.values(this.buttons), this.note), this.sure, this.howFar,
      this.charts.node, this.facts, spec,
      element("section", {}, element("h2", {}, "Attempts"), this.attempts.node),
      element("section", {}, element("h2", {}, "Events, newest first"), this.events),
    ];
  }

  /** Takes the job as it is now; `changed` tells whether it is another than last time. */
  async update(job, changed) {
    this.job = job;
    showState(this.state, job.state);
    showProgress(this.bar, this.done, job);
    say(this.detail, sentence(job));
    for (const [name, states] of Object.entries(MAY)) this.buttons[name].disabled = !states.includes(job.state);
    this.buttons.download.disabled = job.initialization === null;
    this.#showFacts();
    const ended = FINAL.includes(job.state);
    if (changed) this.stale = true;
    if (this.stale && (ended || Date.now() - this.curvesAt > CURVES_EVERY_MS)) {
      this.charts.update(await json(`${this.own}/metrics?max_points=800`, { signal: this.signal }), job.progress.iterations);
      this.curvesAt = Date.now();
      this.stale = false;
    }
    if (changed) {
      this.#showAttempts(await this.#attempts());
      await this.#readEvents();
    }
    this.complete = !this.stale;
  }

  async #attempts() {
    const all = [];
    let cursor = "";
    do {
      const { data, next_cursor } = await json(`${this.own}/attempts?limit=200${cursor}`, { signal: this.signal });
      all.push(...data);
      cursor = next_cursor === null ? null : `&cursor=${next_cursor}`;
    } while (cursor !== null);
    return all;
  }

  #button(text, click) {
    return element("button", { type: "button", click, disabled: true }, text);
  }

  #question() {
    const close = () => this.sure.close();
    return element(
      "dialog", { "aria-labelledby": "sure" }, element("h2", { id: "sure" }, "Cancel this job?"),
      element("p", {}, "It ends for good. Pause it instead if it is to go on later."),
      element(
        "div", { class: "buttons" }, element("button", { type: "button", click: close, autofocus: true }, "Keep it"),
        element("button", { type: "button", class: "danger", click: () => { close(); this.#steer("cancel"); } }, "Cancel the job"),
      ),
    );
  }

  #howFarQuestion() {
    this.iterations = element("input", { type: "number", id: "iterations", required: true, step: 1 });
    const extend = (event) => {
      event.preventDefault();
      this.howFar.close();
      this.#extend(Number(this.iterations.value));
    };
    return element(
      "dialog", { "aria-labelledby": "how-far" }, element("h2", { id: "how-far" }, "Extend this job?"),
      element("p", {}, "It goes on as if it had never ended. What it has learned stays until it has learned more."),
      element(
        "form", { submit: extend }, element("label", { for: "iterations" }, "Meta-iterations in all"), this.iterations,
        element(
          "div", { class: "buttons" }, element("button", { type: "button", click: () => this.howFar.close() }, "Leave it"),
          element("button", { type: "submit" }, "Extend the job"),
        ),
      ),
    );
  }

  #askHowFar() {
    const { iterations } = this.job.progress;
    Object.assign(this.iterations, { min: iterations + 1, value: 2 * iterations });
    this.howFar.showModal();
  }

  async #extend(iterations) {
    const had = this.job.state;
    await this.#steer("extend", { headers: { "Content-Type": "application/json" }, body: JSON.stringify({ iterations }) });
    if (this.job.state !== had) await this.watch();
  }

  async #steer(step, sent = {}) {
    await this.#try(async () => {
      const job = await json(`${this.own}/${step}`, { method: "POST", signal: this.signal, ...sent });
      await this.update(job, true);
      return `The job is ${job.state}.`;
    });
  }

  async #download() {
    await this.#try(async () => {
      say(this.note, "Downloading …");
      const file = await (await ask(this.job.links.initialization, { signal: this.signal })).blob();
      const checked = await hasDigest(file, this.job.initialization.sha256);
      save(file, `${this.job.id}.safetensors`);
      return `Saved ${bytes(file.size)}${checked ? "; its sha256 is the job's" : ""}.`;
    });
  }

  /** Says how an action of the user's went. */
  async #try(action) {
    try {
      say(this.note, await action());
    } catch (problem) {
      if (this.signal.aborted) return;
      if (!(problem instanceof Refusal)) throw problem;
      say(this.note, problem.message);
    }
  }

  #showFacts() {
    const { spec, initialization, created_at, started_at, ended_at, attempt } = this.job;
    const until = ended_at ? Date.parse(ended_at) : Date.now();
    const found = {
      Family: spec.family.kind,
      Model: [spec.model.kind, (spec.model.hidden ?? []).join("-"), spec.model.activation].filter(Boolean).join(" "),
      Method: [spec.method.kind, spec.method.adjoint?.kind].filter(Boolean).join(", "),
      "Trajectory length": short(spec.trajectory.length),
      Solver: [spec.solver.kind, spec.solver.step ? `step ${short(spec.solver.step)}` : null, spec.solver.rtol ? `rtol ${short(spec.solver.rtol)}` : null].filter(Boolean).join(", "),
      "Tasks a meta-batch": whole(spec.meta.tasks_per_batch),
      Submitted: clock(created_at),
      "Running for": started_at ? duration((until - Date.parse(started_at)) / 1000) : "not yet",
      Attempt: attempt ? whole(attempt) : "none yet",
      Initialization: initialization ? `${whole(initialization.parameters ?? 0)} parameters, ${bytes(initialization.size_bytes)}` : "none yet",
      sha256: initialization?.sha256 ?? "none yet",
      Id: this.job.id,
    };
    if (ended_at) delete Object.assign(found, { Took: found["Running for"] })["Running for"];
    const text = JSON.stringify(found);
    if (text === this.factsText) return;
    this.factsText = text;
    this.facts.replaceChildren(...Object.entries(found).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }

  #showAttempts(attempts) {
    const rows = attempts.map((one) => row(
      ATTEMPT_LABELS, String(one.number), one.host, clock(one.started_at), one.ended_at ? clock(one.ended_at) : "it runs",
      one.detail ?? one.reason ?? (one.ended_at ? "it was through" : "–"),
    ));
    if (rows.length === 0) rows.push(element("tr", {}, element("td", { colspan: ATTEMPT_LABELS.length }, "No worker has taken the job up yet.")));
    this.attempts.body.replaceChildren(...rows);
  }

  /** Takes in the events since the last one seen; progress is on the bar already. */
  async #readEvents() {
    for (;;) {
      const { data, next_cursor } = await json(`${this.own}/events?limit=200`, { signal: this.signal, headers: { "Last-Event-ID": String(this.lastEvent) } });
      for (const event of data) {
        if (event.seq <= this.lastEvent) continue; // a button's answer may have brought it already
        this.lastEvent = event.seq;
        if (event.kind !== "progress") this.events.prepend(eventLine(event));
      }
      while (this.events.children.length > SHOWN_EVENTS) this.events.lastChild.remove();
      if (next_cursor === null) return;
    }
  }
}

function eventLine({ kind, data, created_at }) {
  const text = kind === "checkpoint" ? `checkpoint at iteration ${whole(data.step)}` : [data.state, data.detail ?? data.reason].filter(Boolean).join(": ");
  return element("li", {}, element("time", { datetime: created_at, title: age(created_at) }, clock(created_at)), element("span", {}, text));
}

function sentence(job) {
  if (job.status_detail) return job.status_detail;
  const sentences = {
    queued: "It waits for a free worker.",
    running: job.phase ? `It is ${job.phase}.` : "A worker has taken it up.",
    pausing: "It stops at its next checkpoint.",
    paused: "It goes on from its newest checkpoint when it is resumed.",
    cancelling: "It ends within a few seconds.",
    succeeded: "Its initialization is ready.",
  };
  return sentences[job.state] ?? job.status_reason ?? "";
}

/** Whether the digest was compared; browsers only compute it on https and on this machine. A wrong one raises Refusal. */
async function hasDigest(file, sha256) {
  if (!window.isSecureContext) return false;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  const text = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (text !== sha256) throw new Refusal(0, "damaged", "What arrived isn't what the job has learned (its sha256 differs): download it again.");
  return true;
}

export function save(file, name) {
  const link = element("a", { href: URL.createObjectURL(file), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
