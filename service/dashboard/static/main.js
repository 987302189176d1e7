// The dashboard: which page is shown, and the key without which none is.

import { forgetKey, json, keepKey, key, Refusal } from "./api.js";
import { element, say } from "./element.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showStudies } from "./studies.js";
import { showWorkers, watchReadiness } from "./workers.js";

const main = document.getElementById("content");
const forget = document.getElementById("forget");
const TITLES = { workers: "Workers", studies: "Studies" };
let left = new AbortController();

/** Shows the page that the address names: #/jobs, #/jobs/ID, #/studies, #/workers. */
function show(refusal = "") {
  left.abort();
  left = new AbortController();
  forget.hidden = key() === null;
  const [path, query = ""] = (location.hash.slice(1) || "/jobs").split("?");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash && path.startsWith(link.hash.slice(1))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (key() === null) return askForKey(refusal);
  const [, page, id] = path.split("/");
  document.title = id ? "Job · A-MAML" : `${TITLES[page] ?? "Jobs"} · A-MAML`;
  if (page === "workers") return showWorkers(main, new URLSearchParams(query), left.signal);
  if (page === "studies") return showStudies(main, new URLSearchParams(query), left.signal);
  if (page === "jobs" && id) return showJob(main, id, left.signal);
  return showJobs(main, new URLSearchParams(query), left.signal);
}

function askForKey(refusal) {
  document.title = "A-MAML";
  const input = element("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "where refusal" });
  const trouble = element("p", { id: "refusal", class: "trouble", role: "alert", hidden: !refusal }, refusal);
  const open = element("button", { type: "submit" }, "Open");
  const submit = async (event) => {
    event.preventDefault();
    open.disabled = true;
    const given = input.value.trim();
    // Headers carry nothing else, and the browser would say so less clearly.
    const problem = /^[\x21-\x7e]+$/.test(given) ? await tried(given) : "A key is one word like amaml_…: letters, digits and underscores.";
    open.disabled = false;
    if (problem === null) return show();
    trouble.hidden = false;
    say(trouble, problem);
    input.select();
  };
  main.replaceChildren(element(
    "form", { class: "key", submit }, element("h1", {}, "API key"),
    element("p", { id: "where" }, "The dashboard shows what your API key may see. The first key of an installation lies in ", element("code", {}, "$AMAML_HOME/admin.key"), " (", element("code", {}, ".amaml/admin.key"), " after ", element("code", {}, "make up"), "). It is kept in this tab until you close it."),
    element("label", { for: "key" }, "Key"), input, open, trouble,
  ));
  input.focus();
}

/** Keeps the key if it opens the API; otherwise a sentence on why not. */
async function tried(text) {
  keepKey(text);
  try {
    await json("/v1/jobs?limit=1");
    return null;
  } catch (problem) {
    forgetKey();
    if (!(problem instanceof Refusal)) throw problem;
    return problem.message;
  }
}

window.addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); window.scrollTo(0, 0); });
window.addEventListener("key-refused", (event) => {
  if (document.getElementById("key")) return; // the form says it
  forgetKey();
  show(event.detail);
});
forget.addEventListener("click", () => { forgetKey(); show(); });
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
watchReadiness(document.getElementById("readiness"), new AbortController().signal);
show();
