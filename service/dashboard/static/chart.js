// A chart of curves: SVG, a legend with the latest values, exact values under the pointer or the arrow keys.

import { element, say, svg } from "./element.js";
import { short, whole } from "./format.js";
import { nextRound, range, scale } from "./scale.js";

const HEIGHT = 240;
const MARGIN = { top: 10, right: 14, bottom: 38, left: 58 };
const COLOURS = 8;
const MOST_BARS = 15;

/**
 * `title`, `unit` (of the vertical axis), `log`, `empty` (a sentence for the time without values), `series`: [{name, label, best}],
 * `along`: what the horizontal axis counts, and a step's word and number in the text over the exact values.
 * `update(curves, iterations)` draws the curves {name: [[step, value or null], …]}; name_error holds their standard errors. The
 * horizontal axis begins at 0 and grows up to `iterations`; without them it reaches from the first step to the last.
 */
export class Chart {
  constructor({ title, unit, log = false, empty = "", series, along = { axis: "meta-iteration", step: "iteration", number: whole } }) {
    Object.assign(this, { title, unit, log, series, along, curves: {}, iterations: null, chosen: null });
    this.legend = series.map(({ label }, i) => {
      const value = element("output", {}, "–");
      const item = element("li", { class: this.#look(i) }, svg("svg", { class: "sample", width: 26, height: 10, "aria-hidden": "true" }, svg("path", { class: "curve", d: "M1 5H25" })), `${label} `, value);
      return { value, item };
    });
    this.svg = svg("svg", { class: "drawing", height: HEIGHT, "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", role: "status", hidden: true });
    this.empty = element("p", { class: "empty" }, empty);
    this.plot = element(
      "div", {
        class: "plot", tabindex: "0", role: "group", "aria-label": title,
        pointermove: (event) => this.#point(event.offsetX), pointerdown: (event) => this.#point(event.offsetX),
        pointerleave: () => this.#choose(null), blur: () => this.#choose(null), keydown: (event) => this.#key(event),
      }, this.svg, this.empty, this.tip,
    );
    this.node = element(
      "figure", { class: "chart" }, element("figcaption", {}, title),
      element("ul", { class: "legend" }, ...this.legend.map(({ item }) => item)), this.plot,
    );
    this.observer = new ResizeObserver(() => this.#draw());
    this.observer.observe(this.plot);
  }

  update(curves, iterations = null) {
    this.curves = curves;
    this.iterations = iterations;
    for (const [i, { name }] of this.series.entries()) {
      const latest = this.#points(name).at(-1);
      say(this.legend[i].value, latest ? this.#valueAt(name, latest[0], short) : "–");
      this.legend[i].item.toggleAttribute("data-absent", !latest);
    }
    this.#draw();
  }

  /** The points that can be drawn. */
  #points(name) {
    return (this.curves[name] ?? []).filter(([, value]) => value !== null && !(this.log && value <= 0));
  }

  /** The classes that give a series its colour and dashes. */
  #look(i) {
    return `series-${i % COLOURS}${i < COLOURS ? "" : " again"}${this.series[i].best ? " best" : ""}`;
  }

  /** [step, low, high] of the error bars, at some points of a long curve. */
  #bars(name) {
    const errors = new Map(this.curves[`${name}_error`]?.filter(([, error]) => error > 0));
    const points = this.#points(name).filter(([step]) => errors.has(step));
    const every = Math.ceil(points.length / MOST_BARS);
    return points.filter((_, i) => i % every === 0).map(([step, value]) => [step, value - errors.get(step), value + errors.get(step)]);
  }

  #draw() {
    const width = this.plot.clientWidth;
    const drawn = this.series.map(({ name }) => this.#points(name));
    const bars = this.series.map(({ name }) => this.#bars(name));
    const ends = bars.flat().flatMap(([, low, high]) => [low, high]).filter((end) => !this.log || end > 0);
    const values = [...drawn.flat().map(([, value]) => value), ...ends];
    this.empty.hidden = values.length > 0;
    this.svg.replaceChildren();
    if (values.length === 0 || width === 0) {
      this.x = null;
      return;
    }
    this.svg.setAttribute("width", width);
    this.steps = [...new Set(drawn.flat().map(([step]) => step))].sort((a, b) => a - b);
    const [low, high] = range(values, this.log);
    // The axis grows in few, large steps: early curves of a long run aren't a line at its left edge, and it rarely jumps.
    const last = this.steps.at(-1);
    const [from, to] = this.iterations === null ? [this.steps[0], last] : [0, Math.min(Math.max(1, this.iterations), nextRound(last))];
    this.x = scale({ low: from, high: to, from: MARGIN.left, to: width - MARGIN.right, ticks: width < 420 ? 3 : 5 });
    this.y = scale({ low, high, from: HEIGHT - MARGIN.bottom, to: MARGIN.top, log: this.log, ticks: 5 });
    this.#axes(width);
    for (const [i, points] of drawn.entries()) this.#curve(i, points, bars[i].map(([step, ...ends]) => [step, ...ends.map((end) => Math.max(end, low))]));
    this.marker = svg("g", { class: "marker" });
    this.svg.append(this.marker);
    if (this.chosen !== null) this.#choose(this.chosen);
  }

  #axes(width) {
    const bottom = HEIGHT - MARGIN.bottom;
    for (const tick of this.y.ticks) {
      const y = this.y.at(tick);
      this.svg.append(
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
        svg("text", { class: "tick", x: MARGIN.left - 7, y: y + 4, "text-anchor": "end" }, short(tick)),
      );
    }
    for (const tick of this.x.ticks.filter((one) => this.iterations === null || Number.isInteger(one))) {
      const x = this.x.at(tick);
      this.svg.append(
        svg("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }),
        svg("text", { class: "tick", x, y: bottom + 17, "text-anchor": x > width - 30 ? "end" : "middle" }, this.along.number(tick)),
      );
    }
    const middle = (MARGIN.top + bottom) / 2;
    this.svg.append(
      svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      svg("text", { class: "unit", x: width - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" }, this.along.axis),
      svg("text", { class: "unit", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, this.unit),
    );
  }

  #curve(i, points, bars) {
    const path = points.map(([step, value], j) => `${j ? "L" : "M"}${this.x.at(step).toFixed(1)} ${this.y.at(value).toFixed(1)}`).join("");
    const group = svg("g", { class: this.#look(i) }, svg("path", { class: "curve", d: path }));
    const upright = bars.map(([step, low, high]) => `M${this.x.at(step).toFixed(1)} ${this.y.at(low).toFixed(1)}V${this.y.at(high).toFixed(1)}`);
    if (upright.length > 0) group.append(svg("path", { class: "bars", d: upright.join("") }));
    // Few points are evaluations: what lies between them wasn't measured.
    if (points.length <= 40) {
      for (const [step, value] of points) group.append(svg("circle", { class: "dot", cx: this.x.at(step), cy: this.y.at(value), r: 3 }));
    }
    this.svg.append(group);
  }

  #point(pixel) {
    if (!this.x) return;
    this.#choose(this.steps.reduce((best, step) => (Math.abs(this.x.at(step) - pixel) < Math.abs(this.x.at(best) - pixel) ? step : best)));
  }

  #key(event) {
    if (event.key === "Escape") this.#choose(null);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!this.x || way === undefined) return;
    event.preventDefault();
    const at = this.steps.indexOf(this.chosen);
    const next = at < 0 ? this.steps.length - 1 : Math.min(Math.max(at + way, 0), this.steps.length - 1);
    this.#choose(this.steps[next]);
  }

  /** Shows the exact values at a step; null hides them. */
  #choose(step) {
    this.chosen = step;
    this.tip.hidden = step === null;
    this.marker?.replaceChildren();
    if (step === null || !this.x) return;
    const x = this.x.at(step);
    this.marker.append(svg("line", { class: "guide", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    const lines = [element("strong", {}, `${this.along.step} ${this.along.number(step)}`)];
    for (const [i, { name, label }] of this.series.entries()) {
      const found = this.#points(name).find(([at]) => at === step);
      if (!found) continue;
      this.marker.append(svg("g", { class: this.#look(i) }, svg("circle", { class: "dot", cx: x, cy: this.y.at(found[1]), r: 4.5 })));
      lines.push(element("span", {}, `${label}: ${this.#valueAt(name, step, String)}`));
    }
    this.tip.replaceChildren(...lines);
    const wide = this.plot.clientWidth;
    this.tip.style.left = `${Math.min(Math.max(x + 10, 0), Math.max(0, wide - this.tip.offsetWidth))}px`;
    if (x + 10 + this.tip.offsetWidth > wide) this.tip.style.left = `${Math.max(0, x - 10 - this.tip.offsetWidth)}px`;
  }

  /** The value with its standard error, where there is one. */
  #valueAt(name, step, format) {
    const at = (curve) => (this.curves[curve] ?? []).find(([one]) => one === step)?.[1];
    const error = at(`${name}_error`);
    return format(at(name)) + (typeof error === "number" ? ` ± ${format === short ? short(Number(error.toPrecision(2))) : error}` : "");
  }
}
