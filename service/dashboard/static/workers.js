// The workers, and whether jobs would run.

import { ask, follow, json, Refusal } from "./api.js";
import { element, row, say, table } from "./element.js";
import { age, clock } from "./format.js";

const LABELS = ["Worker", "State", "Devices", "Seen", "Started"];

export function showWorkers(main, _, signal) {
  const trouble = element("p", { class: "trouble", role: "alert", hidden: true });
  const { node, body } = table("Workers, the oldest first", LABELS);
  const empty = element("p", { class: "empty" }, "Loading the workers …");
  node.hidden = true;
  main.replaceChildren(element("div", { class: "title" }, element("h1", {}, "Workers")), trouble, node, empty);
  const look = async () => {
    const { data } = await json("/v1/workers", { signal });
    node.hidden = data.length === 0;
    empty.hidden = data.length > 0;
    say(empty, "No worker was ever seen, so jobs wait in the queue. Start one: celery -A worker.main worker.");
    body.replaceChildren(...data.map(workerRow));
  };
  follow(3, signal, look, (refusal) => {
    trouble.hidden = refusal === null;
    if (refusal) say(trouble, refusal.message);
  });
}

function workerRow(worker) {
  const lives = element("span", { class: `badge ${worker.lives ? "ready" : "unready"}` }, worker.lives ? "lives" : "not seen lately");
  const time = (at) => element("time", { datetime: at, title: clock(at) }, age(at));
  return row(
    LABELS, element("div", { class: "stack" }, worker.host, element("span", { class: "small" }, worker.id)), lives,
    devices(worker), time(worker.seen_at), time(worker.started_at),
  );
}

function devices(worker) {
  if (!worker.gpu) return worker.devices.join(", ");
  const gpu = `${worker.gpu.name}, ${(worker.gpu.memory_bytes / 2 ** 30).toFixed(0)} GiB`;
  return element("div", { class: "stack" }, worker.devices.join(", "), element("span", { class: "small", title: worker.gpu.uuid }, gpu));
}

/** Keeps the header's word on readiness; it needs no key. */
export function watchReadiness(node, signal) {
  const look = async () => {
    try {
      await ask("/readyz", { signal });
      showReadiness(node, "ready", "ready", "Jobs would run: the database answers and a worker lives.");
    } catch (problem) {
      if (!(problem instanceof Refusal)) throw problem;
      showReadiness(node, "unready", problem.status ? "not ready" : "no connection", problem.message);
    }
  };
  follow(5, signal, look, () => {});
}

function showReadiness(node, state, word, sentence) {
  node.className = `badge ${state}`;
  node.title = sentence;
  say(node, word);
}
