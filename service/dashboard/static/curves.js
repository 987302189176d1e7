// Which curves a job's page shows.

import { Chart } from "./chart.js";
import { element } from "./element.js";

/** The charts of a job, empty; `update(curves, iterations)` draws them. */
export function charts(spec) {
  const every = spec.evaluation?.every ?? 0;
  const all = [
    new Chart({
      title: "Meta-loss", unit: "meta-loss, log scale", log: true,
      empty: "No value yet: the first comes with the first meta-iteration.",
      series: [{ name: "meta_loss", label: "meta_loss" }],
    }),
    new Chart({
      title: "Norm of the meta-gradient", unit: "norm, log scale", log: true,
      empty: "No value yet: the first comes with the first meta-iteration.",
      series: [{ name: "gradient_norm", label: "gradient_norm" }],
    }),
    new Chart({
      title: "Error on unseen tasks, ± standard error", unit: "nRMSE, standard deviations",
      empty: `No value yet: evaluations come every ${every} meta-iterations and at the end.`,
      series: [
        { name: "nrmse_flow", label: "after the flow" },
        { name: "nrmse_tuned", label: "fine-tuned" },
        { name: "nrmse_random", label: "fine-tuned from a random start" },
      ],
    }),
  ];
  return {
    node: element("div", { class: "charts" }, ...all.map((chart) => chart.node)),
    update: (curves, iterations) => all.forEach((chart) => chart.update(curves, iterations)),
  };
}
