// Phones in the fleet: their part of a card (readings, why one rests, the button that drains it), who has joined, and the
// orders that are under way. Text from phones is set as text, never as markup; elements are kept, so that neither focus
// nor selection is lost each second.

import { keep, make, write } from "./bars.js";
import { now, post, read } from "./gateway.js";
import { careOf, makeOf, oldSince, readingsOf, tells } from "./readings.js";
import { clock, length, mark, pause, say, seen } from "./words.js";

const EVERY_MS = 2000;
const BARS = 4;
const ORDERS = {
  drain: { label: "Drain", running: "Draining…", done: "gets nothing new" },
  resume: { label: "Resume", running: "Resuming…", done: "is in service again" },
};
let told = new Map(); // by the phone's id
let joined = null; // when each of them registered last, by its id; null: never heard
let turn = 0; // an order has changed what earlier answers say
const running = new Map(); // orders that are under way, by the phone's id
const troubles = new Map(); // the last order's error, by the phone's id
const restSeen = new Map(); // when a rest began under our eyes, by the node's id
const listeners = [];

/** `listener(phone)` is called for every phone that joins while the page is open, also for one that was known before. */
export function whenJoined(listener) {
  listeners.push(listener);
}

export const phoneOf = (id) => told.get(id);

/** Are its readings shown, its speed among them? */
export function tellsOf(node) {
  const phone = told.get(node.id);
  return Boolean(phone) && tells(node, phone);
}

// the part of a card

export function buildPhone() {
  const part = make("div", "phone");
  part.append(make("dl", "readings"), make("p", "why"));
  part.hidden = true;
  return part;
}

export function showPhone(part, node) {
  part.hidden = !tellsOf(node);
  if (part.hidden) return;
  const [readings, why] = part.children;
  keep(readings, readingsOf(node, told.get(node.id), now()), (one) => one.kind, buildReading, showReading);
  showWhy(why, node);
}

function buildReading(one) {
  const cell = make("div", one.kind);
  const value = make("dd");
  value.append(make("span", "gauge"), make("span", "value"), make("span", "note"));
  value.firstChild.setAttribute("aria-hidden", "true");
  if (one.kind === "battery") value.firstChild.append(make("span", "level"));
  if (one.kind === "signal") for (let bar = 0; bar < BARS; bar += 1) value.firstChild.append(make("span"));
  cell.append(make("dt", "", one.title), value);
  return cell;
}

function showReading(cell, one) {
  mark(cell, "class", `${one.kind} ${one.look}`);
  if (one.status && one.status !== "none") mark(cell, "title", `Android's thermal status: ${one.status}`);
  else cell.removeAttribute("title");
  const [gauge, value, note] = cell.lastChild.children;
  write(value, one.value);
  write(note, one.note);
  if (one.kind === "battery") {
    const width = `${one.level ?? 0}%`;
    if (gauge.firstChild.style.width !== width) gauge.firstChild.style.width = width;
  }
  if (one.kind === "signal") [...gauge.children].forEach((bar, place) => mark(bar, "class", place < (one.bars ?? 0) ? "on" : ""));
}

function showWhy(why, node) {
  const care = careOf(node);
  const since = restSince(node);
  const old = oldSince(node, now());
  const parts = care ? [care.title] : [];
  if (since !== null) parts.push(` since ${clock(since)}${length(now() - since)}`);
  if (care) parts.push(`: ${care.detail}`);
  if (old) parts.push(`${care ? ". " : ""}Told at ${clock(old)}, nothing since.`);
  write(why, parts.join(""));
  mark(why, "class", `why ${node.resting ? "rests" : ""}`);
  why.hidden = !parts.length;
}

/** When its rest began: the gateway's word, else what was seen here; null where nobody knows. */
function restSince({ id, resting, resting_since: since }) {
  if (!resting) restSeen.set(id, null);
  else if (since) restSeen.set(id, Date.parse(since));
  else if (restSeen.get(id) === null) restSeen.set(id, now());
  else if (!restSeen.has(id)) restSeen.set(id, undefined);
  return resting ? restSeen.get(id) ?? null : null;
}

// the foot of a card: what it is, and the button

export function buildFoot() {
  const foot = make("div", "foot");
  const button = make("button", "quiet");
  button.type = "button";
  button.addEventListener("click", () => order(foot));
  const trouble = make("p", "trouble");
  trouble.setAttribute("role", "alert");
  foot.append(make("div", "facts"), button, trouble);
  return foot;
}

export function showFoot(foot, node) {
  const phone = told.get(node.id);
  const [about, button, trouble] = foot.children;
  foot.hidden = !phone;
  if (!phone) return;
  foot.dataset.phone = node.id;
  write(about, makeOf(phone));
  button.hidden = phone.origin !== "file" && !phone.serial;
  const wanted = phone.drained ? "resume" : "drain";
  const under = running.get(node.id);
  mark(button, "data-order", wanted);
  mark(button, "aria-disabled", String(Boolean(under)));
  write(button, under ? ORDERS[under].running : ORDERS[wanted].label);
  mark(button, "aria-label", `${button.textContent} ${node.name}`);
  write(trouble, troubles.get(node.id) ?? "");
  foot.hidden = button.hidden && !about.textContent;
}

async function order(foot) {
  const id = foot.dataset.phone;
  const [, button] = foot.children;
  const word = button.dataset.order;
  if (running.has(id)) return; // it is not disabled while it works: the focus would be lost
  const { name } = told.get(id);
  running.set(id, word);
  troubles.delete(id);
  showFoot(foot, { id, name });
  try {
    const phone = await post(`/api/phones/${encodeURIComponent(id)}/${word}`);
    told.set(id, phone);
    say(`${phone.name} ${ORDERS[word].done}.`);
  } catch (error) {
    troubles.set(id, error.message);
  }
  turn += 1;
  running.delete(id);
  if (told.has(id)) showFoot(foot, { id, name });
}

// hearing of them

function hear(phones) {
  told = new Map(phones.map((phone) => [phone.id, phone]));
  for (const known of [troubles, restSeen]) for (const id of known.keys()) if (!told.has(id)) known.delete(id);
  const before = joined;
  joined = new Map(phones.filter((phone) => phone.joined).map((phone) => [phone.id, phone.joined_at]));
  if (before === null) return;
  const anew = phones.filter(({ id }) => joined.has(id) && hasRegistered(before, id));
  if (!anew.length) return;
  say(`${anew.map((phone) => phone.name).join(", ")} ${anew.length > 1 ? "have" : "has"} joined.`);
  for (const phone of anew) for (const listener of listeners) listener(phone);
}

/** A gateway that was started anew knows of no registration yet: that is none. */
function hasRegistered(before, id) {
  if (!before.has(id)) return true;
  return joined.get(id) != null && joined.get(id) !== before.get(id);
}

/** Asks as long as the page is open. `wanted` says whether there may be any. */
export async function watchPhones(wanted, changed) {
  for (await seen(); ; await pause(EVERY_MS)) {
    if (joined !== null && !wanted()) continue;
    try {
      const asked = turn;
      const answer = await read("/api/phones");
      if (asked === turn && !running.size) hear(answer.phones);
      changed();
    } catch {
      // The fleet's own look tells why, and what was heard last stays as it is.
    }
  }
}
