// Talking to the gateway: every call of the page with the key of this tab, refusals as errors in the gateway's words, and
// the gateway's clock, since the one of whoever looks may be wrong. The key lives in this tab's session storage and
// travels as a header; nothing here touches the page. What does not answer and what cannot be read are errors with words,
// too: a proxy in between may hold the line open for ever, or answer with a page of its own.

const KEY = "potluck-key";
const LOOK_MS = 8000; // what is asked again and again is answered at once, or never
const ORDER_MS = 60_000; // an order may have to find an address first
const SILENT = "The gateway does not answer.";
export const BROKEN = "The connection ended before the answer did.";
export const STRANGE = "What answers here is not the gateway, or another version of it: load this page anew.";
const SLACK_MS = 2000; // the gateway tells whole seconds: less is no difference
let skew = 0; // the gateway's clock less ours

export class Refused extends Error {
  constructor(status, record) {
    const error = record?.error ?? {};
    const told = typeof error === "string" ? error : error.message;
    super([told ?? `the gateway answered ${status}`, error.hint].filter(Boolean).join("\n"));
    this.status = status;
  }
}

/** Nobody answered, or something else did. */
export class Unheard extends Error {}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** Throws Refused or Unheard, and AbortError where the caller's own signal has ended it. */
export async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) })
    .catch((error) => { throw error.name === "AbortError" ? error : new Unheard(SILENT); });
  const told = Date.parse(response.headers.get("date") ?? "") - Date.now();
  if (Math.abs(told - skew) > SLACK_MS) skew = told;
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => null));
}

/** A record, or null where the answer is empty; as `call`, and Unheard as well where it takes too long. */
async function record(path, options, limitMs) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), limitMs);
  try {
    const response = await call(path, { ...options, signal: limit.signal });
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    if (limit.signal.aborted) throw new Unheard(SILENT);
    throw error instanceof SyntaxError ? new Unheard(STRANGE) : error;
  } finally {
    clearTimeout(timer);
  }
}

export const read = (path) => record(path, {}, LOOK_MS);

export const post = (path, body = {}) => {
  const headers = { "Content-Type": "application/json" };
  return record(path, { method: "POST", headers, body: JSON.stringify(body) }, ORDER_MS);
};

export const remove = (path) => record(path, { method: "DELETE" }, ORDER_MS);

/** The lines of an answer that comes bit by bit. Unheard where it breaks off. */
export async function* records(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const next = () => reader.read().catch((error) => { throw error.name === "AbortError" ? error : new Unheard(BROKEN); });
  let rest = "";
  for (;;) {
    const { value, done } = await next();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield parsed(line);
  }
}

function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Unheard(STRANGE);
  }
}

/** Milliseconds, by the gateway's clock. */
export const now = () => Date.now() + skew;
