// Calls to the API with the user's key, and the loop that keeps a page up to date.

const KEY = "amaml-key";

export const key = () => sessionStorage.getItem(KEY);
export const keepKey = (text) => sessionStorage.setItem(KEY, text);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The service refused or didn't answer; the message is a sentence for the user. Status 0: it wasn't reached. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The answer to a request, good or 304; raises Refusal for any other. */
export async function ask(path, { method = "GET", headers = {}, body = null, signal = null } = {}) {
  const sent = key() === null ? headers : { Authorization: `Bearer ${key()}`, ...headers };
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
  } catch (problem) {
    if (signal?.aborted) throw problem;
    throw new Refusal(0, "unreachable", "The service doesn't answer. Is it running? This page goes on trying.");
  }
  if (answer.ok || answer.status === 304) return answer;
  const refusal = await refused(answer);
  if (refusal.code === "unauthenticated") window.dispatchEvent(new CustomEvent("key-refused", { detail: refusal.message }));
  throw refusal;
}

export const json = async (path, options) => (await ask(path, options)).json();

async function refused(answer) {
  if (!(answer.headers.get("Content-Type") ?? "").startsWith("application/problem+json")) {
    return new Refusal(answer.status, "unknown", `Something in between answered ${answer.status} in the service's place.`);
  }
  const { code, detail, errors } = await answer.json();
  return new Refusal(answer.status, code, errors ? errors.map((error) => error.detail).join("; ") : detail);
}

/** Calls `read` repeatedly until it returns false or the page is left; `showRefusal` gets each refusal, and null when it is over. */
export async function follow(seconds, signal, read, showRefusal) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        const more = await read();
        if (signal.aborted) return;
        showRefusal(null);
        if (more === false) return;
      } catch (problem) {
        if (signal.aborted) return;
        if (!(problem instanceof Refusal)) throw problem;
        showRefusal(problem);
        if (problem.status >= 400 && problem.status < 500) return; // asking again would be answered the same
      }
    }
    await pause(seconds, signal);
  }
}

function pause(seconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, 1000 * seconds);
    const early = () => { clearTimeout(timer); done(); };
    signal.addEventListener("abort", early, { once: true });
  });
}
