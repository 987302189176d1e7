// Elements from words. What comes from the server becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `attributes` with a function are event listeners, with true or false are present or absent. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Changes the text only where it differs: what a reader has selected, or a screen reader has read, stays. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table whose cells carry their column's name, for narrow screens. */
export function row(labels, ...cells) {
  return element("tr", {}, ...cells.map((cell, i) => element("td", { "data-label": labels[i] }, cell)));
}

export function table(caption, labels) {
  const body = element("tbody");
  const head = element("tr", {}, ...labels.map((label) => element("th", { scope: "col" }, label)));
  const node = element(
    "table", {}, element("caption", { class: "unseen" }, caption), element("thead", {}, head), body,
  );
  return { node, body };
}
