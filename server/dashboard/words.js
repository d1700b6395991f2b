// Small words and small changes to the page that several parts of it share.

const SAID_MS = 30_000; // long enough to be found by whoever looked away
let hushing = null;

export const seconds = (ms) => (ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`);

/** A time of day, in the words of whoever looks. To make one that formats takes longer than all else of an update. */
const times = new Intl.DateTimeFormat([], { hour: "numeric", minute: "2-digit" });
export const clock = (moment) => times.format(new Date(moment));

/** How long, behind a moment, in minutes and hours: seconds would change too often to be read. */
export function length(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return "";
  return minutes < 60 ? ` (${minutes} min)` : ` (${Math.floor(minutes / 60)} h ${minutes % 60} min)`;
}

/** What is left, to be watched: 14:05. */
export function countdown(ms) {
  const left = Math.max(0, Math.ceil(ms / 1000));
  const minutes = Math.floor(left / 60);
  return minutes < 60
    ? `${minutes}:${String(left % 60).padStart(2, "0")}`
    : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** So long, and until somebody looks: a page in the background asks for nothing, and is right as soon as it is seen. */
export async function pause(ms) {
  await new Promise((resolve) => setTimeout(resolve, ms));
  await seen();
}

export async function seen() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

export function mark(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** To everybody who looks or listens: something has happened. Its place is kept free, so that nothing moves. */
export function say(text) {
  clearTimeout(hushing);
  document.getElementById("news").textContent = text;
  hushing = setTimeout(() => { document.getElementById("news").textContent = ""; }, SAID_MS);
}
