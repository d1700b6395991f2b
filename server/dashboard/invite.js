// The invitation: its line and code for the address that the phone can reach, until when it is good, and that a phone has
// joined. The secret leaves the page once nobody needs it: when the dialog closes, when it expires, is used or withdrawn.
// What else is open stands below, by its time: whoever closed the dialog too early can still take an invitation back.

import { keep, make, write } from "./bars.js";
import { now, post, read, remove } from "./gateway.js";
import { whenJoined } from "./phones.js";
import { clock, countdown, mark } from "./words.js";

const element = (id) => document.getElementById(id);
let made = null; // what the gateway has told, while it is good
let turn = 0; // of the question that is wanted; answers to earlier ones are dropped
let ticking = null;

const path = (id) => `/api/phones/invitations/${encodeURIComponent(id)}`;
export const isOpen = () => element("invite").open;

async function invite() {
  const mine = forget();
  write(element("invite-news"), "Making an invitation…");
  element("invite-again").hidden = true;
  if (!isOpen()) element("invite").showModal();
  try {
    const answer = await post("/api/phones/invite");
    if (mine === turn) show(answer);
  } catch (error) {
    if (mine !== turn) return;
    write(element("invite-news"), "");
    write(element("invite-error"), error.message);
    offer("Try again");
  }
  if (mine === turn) await showOthers();
}

function show(answer) {
  made = { ...answer, until: Date.parse(answer.expires_at) };
  const address = element("invite-address");
  address.replaceChildren(...made.links.map((link, place) => new Option(named(link), place)));
  address.parentElement.hidden = made.links.length < 2;
  choose();
  write(element("invite-news"), "");
  element("invite-made").hidden = false;
  element("invite-copy").hidden = false;
  offer("Another one");
  tick();
  ticking = setInterval(tick, 500);
  element("invite-copy").focus();
}

const named = ({ address, interface: card }) => (card ? `${address} (${card})` : address);

/** The line and the code for the address that is chosen. */
function choose() {
  const link = made.links[element("invite-address").value] ?? made.links[0];
  const code = make("img");
  code.alt = "The same line as a QR code";
  code.src = `data:image/svg+xml,${encodeURIComponent(link.qr_svg ?? made.qr_svg)}`;
  element("invite-code").replaceChildren(code);
  element("invite-command").value = link.command ?? made.command;
  write(element("invite-copy"), "Copy the line");
}

function tick() {
  const left = made.until - now();
  if (left > 0) {
    write(element("invite-until"), `Good for one phone, until ${clock(made.until)}, ${countdown(left)} left.`);
  } else {
    end("This invitation has expired. A phone that has begun with it may still finish.");
  }
}

/** Over, one way or the other. */
function end(words) {
  forget();
  write(element("invite-news"), words);
  offer("Invite another phone");
  element("invite-again").focus();
  showOthers();
}

/** A phone may have come by another invitation: then this one is still good. */
async function meet(phone) {
  if (!isOpen()) return;
  const mine = turn;
  const open = await openOnes();
  if (mine !== turn || !made) return;
  const words = `${phone.name} has joined.`;
  if (open?.some((one) => one.id === made.id)) write(element("invite-news"), `${words} This invitation is still good.`);
  else end(words);
}

// taking one back

async function withdraw() {
  const mine = turn;
  element("invite-error").textContent = "";
  try {
    await remove(path(made.id));
    if (mine === turn) end("The invitation is withdrawn: its line does nothing any more.");
  } catch (error) {
    if (mine !== turn) return;
    if (error.status === 404) end("This invitation is over already.");
    else write(element("invite-error"), error.message);
  }
}

/** What a phone can still join with; null where nobody tells. */
const openOnes = () => read("/api/phones/invitations").then((told) => told.invitations, () => null);

async function showOthers() {
  const mine = turn;
  const open = await openOnes();
  if (mine !== turn || !isOpen() || open === null) return;
  const others = open.filter((one) => one.id !== made?.id);
  element("invite-others").hidden = !others.length;
  keep(element("invite-other-list"), others, (one) => one.id, buildOther, updateOther);
}

function buildOther(one) {
  const item = make("li");
  const button = make("button", "quiet", "Withdraw");
  button.type = "button";
  button.addEventListener("click", () => withdrawOther(one.id, item));
  item.append(make("span"), button);
  return item;
}

function updateOther(item, { made_at: begun, expires_at: until, fetched }) {
  write(item.firstChild, `Made at ${clock(begun)}, ${fetched ? "being used" : "open"} until ${clock(until)}`);
  mark(item.lastChild, "aria-label", `Withdraw the one made at ${clock(begun)}`);
}

async function withdrawOther(id, item) {
  try {
    await remove(path(id));
  } catch (error) {
    if (error.status !== 404) return void write(item.firstChild, error.message);
  }
  element(made ? "invite-copy" : "invite-again").focus(); // the button goes, and would take the focus with it
  await showOthers();
}

function offer(words) {
  element("invite-again").hidden = false;
  write(element("invite-again"), words);
}

/** A page without TLS has no clipboard of its own; then the text is selected and copied as people would. */
async function copy() {
  const line = element("invite-command");
  let copied = false;
  try {
    await navigator.clipboard.writeText(line.value);
    copied = true;
  } catch {
    line.select();
    copied = document.execCommand("copy");
  }
  write(element("invite-copy"), copied ? "Copied" : "Press Ctrl-C");
  write(element("invite-news"), copied ? "The line is copied." : "The line is selected: copy it with Ctrl-C.");
}

/** Nothing of a secret stays. Returns the number of the next question. */
function forget() {
  clearInterval(ticking);
  made = null;
  element("invite-made").hidden = true;
  element("invite-copy").hidden = true;
  element("invite-command").value = "";
  element("invite-code").replaceChildren();
  element("invite-address").replaceChildren();
  element("invite-others").hidden = true;
  for (const part of ["invite-until", "invite-news", "invite-error"]) write(element(part), "");
  turn += 1;
  return turn;
}

export function prepareInvite() {
  element("invite-open").addEventListener("click", invite);
  element("invite-again").addEventListener("click", invite);
  element("invite-copy").addEventListener("click", copy);
  element("invite-address").addEventListener("change", choose);
  element("invite-withdraw").addEventListener("click", withdraw);
  element("invite-close").addEventListener("click", () => element("invite").close());
  element("invite").addEventListener("close", forget);
  whenJoined(meet);
}
