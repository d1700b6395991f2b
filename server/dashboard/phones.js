// Phones: what a card shows of battery, heat, signal and speed, the button that drains one, and the invitation with its
// code. Text from phones is set as text, never as markup; the code comes as a picture and is shown as one.

import { keep, make, write } from "./bars.js";

const EVERY_MS = 2000;
const element = (id) => document.getElementById(id);
let told = new Map(); // by the phone's id
let call = null; // how the gateway is asked
const asking = new Set(); // ids of phones that an order is under way for

/** The part of a node's card; `showPhone` fills it. */
export function buildPhone() {
  const part = make("div", "phone");
  const button = make("button", "quiet");
  button.type = "button";
  button.addEventListener("click", () => order(part));
  part.append(make("ul", "readings"), make("div", "facts"), make("div", "why"), button);
  part.hidden = true;
  return part;
}

export function showPhone(part, node) {
  const phone = told.get(node.id);
  part.hidden = !phone;
  if (!phone) return;
  part.dataset.phone = node.id;
  part.dataset.name = node.name;
  const [readings, about, why, button] = part.children;
  keep(readings, readingsOf(phone), (one) => one.kind, (one) => make("li", one.kind), (item, one) => {
    write(item, one.text);
    item.className = `${one.kind} ${one.look}`;
  });
  write(about, aboutOf(phone));
  about.hidden = !about.textContent;
  write(why, phone.resting ? `Rests: ${phone.resting}` : "");
  why.hidden = !phone.resting;
  button.hidden = phone.origin !== "file";
  button.disabled = asking.has(node.id);
  button.dataset.order = phone.drained ? "resume" : "drain";
  write(button, phone.drained ? "Resume" : "Drain");
  const label = `${button.textContent} ${node.name}`;
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
}

/** What is known, in its order; null is what the phone did not tell. */
function readingsOf(phone) {
  const { condition, signal_dbm: signal, tokens_per_second: speed } = phone;
  const found = [];
  if (signal != null) found.push({ kind: "signal", look: signal < -75 ? "bad" : "good", text: `signal ${signal} dBm` });
  if (condition?.battery_percent != null) {
    const level = Math.round(condition.battery_percent);
    const look = condition.charging || level > 30 ? "good" : level > 15 ? "busy" : "bad";
    found.push({ kind: "battery", look, text: `battery ${level} %${condition.charging ? ", charging" : ""}` });
  }
  const heat = heatOf(condition);
  if (heat) found.push(heat);
  if (speed != null) found.push({ kind: "speed", look: "", text: `${speed} tokens/s` });
  return found;
}

function heatOf(condition) {
  if (!condition || (condition.temperature_c == null && !condition.thermal_status && !condition.overheated)) return null;
  const warmth = condition.temperature_c ?? 0;
  const word = condition.overheated ? "overheated" : condition.thermal_status;
  const hot = condition.overheated || warmth >= 43 || ["severe", "critical", "emergency", "shutdown"].includes(word);
  const warm = warmth >= 37 || ["light", "moderate"].includes(word);
  const parts = [condition.temperature_c == null ? "" : `${Math.round(warmth)} °C`, word && word !== "none" ? word : ""];
  return { kind: "heat", look: hot ? "bad" : warm ? "busy" : "good", text: `heat ${parts.filter(Boolean).join(", ") || "none"}` };
}

function aboutOf({ details, drained, in_flight: running }) {
  const parts = [details.chip];
  if (details.ram_bytes) parts.push(`${(details.ram_bytes / 2 ** 30).toFixed(1)} GB RAM`);
  if (details.android) parts.push(`Android ${details.android}`);
  if (details.mode && details.mode !== "native") parts.push(details.mode);
  if (drained) parts.push(running ? `finishes ${running} more` : "drained");
  return parts.filter(Boolean).join(" · ");
}

async function order(part) {
  const id = part.dataset.phone;
  const button = part.lastElementChild;
  asking.add(id);
  button.disabled = true;
  try {
    const path = `/api/phones/${encodeURIComponent(id)}/${button.dataset.order}`;
    const phone = await (await call(path, { method: "POST" })).json();
    told.set(id, phone);
    asking.delete(id);
    showPhone(part, { id, name: phone.name });
  } catch (error) {
    asking.delete(id);
    button.disabled = false;
    const why = part.children[2];
    write(why, error.message);
    why.hidden = false;
  }
}

// the invitation

async function invite() {
  element("invite-open").disabled = true;
  write(element("invite-error"), "");
  try {
    const wish = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const made = await (await call("/api/phones/invite", wish)).json();
    const code = make("img");
    code.alt = "The line as a QR code";
    code.src = `data:image/svg+xml,${encodeURIComponent(made.qr_svg)}`;
    element("invite-code").replaceChildren(code);
    element("invite-command").value = made.command;
    const until = new Date(made.expires_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    write(element("invite-until"), `Good for one phone, until ${until}.`);
    const others = made.links.slice(1).map((link) => ({ ...link, text: `${link.url} (${link.interface})` }));
    keep(element("invite-others"), others, (link) => link.url, () => make("li", "facts"), (item, link) => write(item, link.text));
    element("invite-made").hidden = false;
  } catch (error) {
    element("invite-made").hidden = true;
    write(element("invite-error"), error.message);
  } finally {
    element("invite-open").disabled = false;
  }
  if (!element("invite").open) element("invite").showModal();
}

/** A page without TLS has no clipboard of its own, so the text is selected and copied as people would. */
function copy() {
  element("invite-command").select();
  write(element("invite-copy"), document.execCommand("copy") ? "Copied" : "Press Ctrl-C");
}

/** The secret does not stay in the page once nobody looks at it. */
function forget() {
  element("invite-command").value = "";
  element("invite-code").replaceChildren();
  element("invite-others").replaceChildren();
  write(element("invite-copy"), "Copy");
}

/** Asks as long as the page is open. `ask` is how, `wanted` says whether there is anybody to ask for. */
export async function watchPhones(ask, wanted, changed) {
  call = ask;
  element("invite-open").addEventListener("click", invite);
  element("invite-again").addEventListener("click", () => { forget(); invite(); });
  element("invite-copy").addEventListener("click", copy);
  element("invite-close").addEventListener("click", () => element("invite").close());
  element("invite").addEventListener("close", forget);
  for (;;) {
    if (!document.hidden && wanted()) {
      try {
        const { phones } = await (await call("/api/phones")).json();
        told = new Map(phones.map((phone) => [phone.id, phone]));
      } catch {
        told = new Map(); // the fleet's own look tells what is wrong
      }
      changed();
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}
