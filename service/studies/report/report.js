// Draws a report's tables of points as charts. Where scripts don't run, the tables are what there is.

import { Chart } from "./chart.js";
import { short } from "./format.js";

/** A vertical axis whose largest value is so many times its least is logarithmic. */
const LOG_FROM = 20;

for (const figure of document.querySelectorAll("figure")) {
  const points = figure.querySelector("details");
  const [axis, ...heads] = points.querySelectorAll("th");
  const series = heads.map((head, i) => ({ name: `series ${i}`, label: head.textContent, best: head.matches(".best") }));
  const curves = Object.fromEntries(series.flatMap(({ name }) => [[name, []], [`${name}_error`, []]]));
  const ends = [];
  for (const row of points.querySelectorAll("tbody tr")) {
    const [step, ...cells] = row.cells;
    for (const [i, { dataset: { value, error = 0 } }] of cells.entries()) {
      if (value === undefined) continue;
      curves[series[i].name].push([Number(step.dataset.value), Number(value)]);
      curves[`${series[i].name}_error`].push([Number(step.dataset.value), Number(error) || null]);
      ends.push(Number(value) - Number(error), Number(value) + Number(error));
    }
  }
  const [least, largest] = [Math.min(...ends), Math.max(...ends)];
  const log = least > 0 && largest > LOG_FROM * least;
  const along = { axis: axis.textContent, step: axis.textContent, number: short };
  const unit = figure.dataset.unit + (log ? ", log scale" : "");
  const chart = new Chart({ title: figure.querySelector("figcaption").textContent, unit, log, series, along });
  chart.update(curves);
  points.open = false;
  chart.node.append(points);
  figure.replaceWith(chart.node);
}
