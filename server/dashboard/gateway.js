// Talking to the gateway: every call of the page with the key of this tab, refusals as errors in the gateway's words, and
// the gateway's clock, since the one of whoever looks may be wrong. The key lives in this tab's session storage and
// travels as a header; nothing here touches the page.

const KEY = "potluck-key";
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

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** Throws Refused, or what the network says. */
export async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  const told = Date.parse(response.headers.get("date") ?? "") - Date.now();
  if (Math.abs(told - skew) > SLACK_MS) skew = told;
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => null));
}

export const read = async (path) => (await call(path)).json();

export const post = async (path, body = {}) => {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
};

/** The lines of an answer that comes bit by bit. */
export async function* records(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

/** Milliseconds, by the gateway's clock. */
export const now = () => Date.now() + skew;
