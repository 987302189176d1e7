// Which curves a job's page shows.

import { Chart } from "./chart.js";
import { element } from "./element.js";
import { ACCURACY, FLOW, GRADIENT_NORM, META_LOSS, NRMSE, RANDOM, TUNED, score } from "./metrics.js";

/** The charts of a job, empty; `update(curves, iterations)` draws them. */
export function charts(spec) {
  const every = spec.evaluation?.every ?? 0;
  const all = [
    new Chart({
      title: "Meta-loss", unit: "meta-loss, log scale", log: true,
      empty: "No value yet: the first comes with the first meta-iteration.",
      series: [{ name: META_LOSS, label: META_LOSS }],
    }),
    new Chart({
      title: "Norm of the meta-gradient", unit: "norm, log scale", log: true,
      empty: "No value yet: the first comes with the first meta-iteration.",
      series: [{ name: GRADIENT_NORM, label: GRADIENT_NORM }],
    }),
    unseen(NRMSE, "Error on unseen tasks, ± standard error", "nRMSE, standard deviations", every),
    unseen(ACCURACY, "Right answers on unseen tasks, ± standard error", "accuracy, share of points", every),
  ];
  const [error, right] = all.slice(2);
  right.node.hidden = true;
  return {
    node: element("div", { class: "charts" }, ...all.map((chart) => chart.node)),
    update: (curves, iterations) => {
      // A family has one metric, and which it is only its values tell.
      right.node.hidden = !(score(ACCURACY, TUNED) in curves);
      error.node.hidden = !right.node.hidden;
      all.forEach((chart) => chart.update(curves, iterations));
    },
  };
}

function unseen(metric, title, unit, every) {
  return new Chart({
    title, unit, empty: `No value yet: evaluations come every ${every} meta-iterations and at the end.`,
    series: [
      { name: score(metric, FLOW), label: "after the flow" },
      { name: score(metric, TUNED), label: "fine-tuned" },
      { name: score(metric, RANDOM), label: "fine-tuned from a random start" },
    ],
  });
}
