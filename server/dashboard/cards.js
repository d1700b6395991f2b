// A card for each node: its state in a word, what it has, what it has done. The parts for phones and for split models
// fill themselves. Text from nodes is set as text, never as markup; elements are kept and only what changed is written.

import { count, keep, make, write } from "./bars.js";
import { cableOf } from "./cable.js";
import { buildFoot, buildPhone, phoneOf, showFoot, showPhone, tellsOf } from "./phones.js";
import { buildSplits, showSplits } from "./splits.js";
import { mark } from "./words.js";

const MODELS_SHOWN = 8; // of a node that has dozens the rest is a number: the list of models to ask for names them all
const WORDS = { unknown: "not asked yet", silent: "does not answer", draining: "leaving", disabled: "switched off" };
// In this order they are counted; the words behind a number.
const SUMS = [
  ["working", "at work"], ["free", "free"], ["resting", "resting"], ["failing", "failing"], ["drained", "drained"],
  ["silent", "silent"], ["other", "not ready"],
];

/** [what it counts as, how it looks, its state in words] */
function stateOf(node) {
  if (node.status === "disabled") {
    if (node.in_flight) return ["drained", "busy", `finishes ${count(node.in_flight, "answer")}`];
    return ["drained", "idle", phoneOf(node.id)?.drained ? "drained" : WORDS.disabled];
  }
  if (node.status === "silent") return ["silent", "bad", WORDS.silent];
  if (node.status !== "ready") return ["other", "idle", WORDS[node.status] ?? node.status];
  if (node.breaker === "open") return ["failing", "bad", `resting after failures, ${Math.ceil(node.breaker_open_for_s ?? 0)} s`];
  if (node.breaker === "half_open") return ["failing", "busy", "on trial"];
  if (node.resting) return ["resting", "rest", "resting"];
  if (node.in_flight >= node.slots) return ["working", "busy", "busy"];
  return node.in_flight ? ["working", "good", "answering"] : ["free", "good", "free"];
}

/** The nodes of the kinds that are named in `only`; all of them where it names none. */
export function chosen(nodes, only) {
  const kinds = only.split(" ");
  return only ? nodes.filter((node) => kinds.includes(stateOf(node)[0])) : nodes;
}

const isAble = (node) => ["working", "free"].includes(stateOf(node)[0]);
const speedOf = (node) => node.tokens_per_second ?? phoneOf(node.id)?.tokens_per_second ?? 0;

/** How many are in which state, in a line, and how fast those that can work are together. */
export function summaryOf(nodes) {
  const numbers = new Map();
  for (const node of nodes) {
    const [kind] = stateOf(node);
    numbers.set(kind, (numbers.get(kind) ?? 0) + 1);
  }
  const parts = SUMS.filter(([kind]) => numbers.has(kind)).map(([kind, words]) => `${numbers.get(kind)} ${words}`);
  const speed = nodes.reduce((sum, node) => sum + (isAble(node) ? speedOf(node) : 0), 0);
  if (speed) parts.push(`${speed < 100 ? speed.toFixed(1) : Math.round(speed)} tokens/s together`);
  return parts.join(" · ");
}

export function showCards(list, nodes, adb) {
  keep(list, nodes, (node) => node.id, buildCard, (card, node) => updateCard(card, node, adb));
}

function buildCard(node) {
  const card = make("li");
  card.dataset.node = node.id;
  const about = make("div", "about");
  const top = make("div", "top");
  top.append(make("span", "name"), make("span", "state"));
  about.append(top, make("div", "place"), make("ul", "models"), make("div", "facts"), make("div", "error"));
  about.children[2].setAttribute("aria-label", "Models");
  card.append(about, buildPhone(), buildFoot(), buildSplits());
  return card;
}

function updateCard(card, node, adb) {
  const [about, phone, foot, splits] = card.children;
  const [top, place, models, facts, error] = about.children;
  const [kind, look, state] = stateOf(node);
  mark(card, "class", `panel node ${look} ${kind}`);
  write(top.firstChild, node.name);
  write(top.lastChild, state);
  write(place, placeOf(node, adb));
  keep(models, modelsOf(node), (model) => model.name, buildModel, updateModel);
  write(facts, factsOf(node));
  write(error, look === "good" ? "" : node.last_error ?? "");
  error.hidden = !error.textContent;
  showPhone(phone, node);
  showFoot(foot, node);
  showSplits(splits, node.id);
  card.classList.toggle("wide", !splits.hidden);
}

function placeOf(node, adb) {
  const cable = cableOf(adb, node);
  const where = cable ? `on a cable, port ${cable.local_port} here` : node.address;
  const kind = phoneOf(node.id)?.joined || cable ? "phone" : node.kind;
  return [where, kind, node.last_resort ? "last resort" : ""].filter(Boolean).join(" · ");
}

/** Those in memory first where not all have room. */
function modelsOf({ models, resident }) {
  const all = [...new Set(models)].map((name) => ({ name, look: resident.includes(name) ? "resident" : "" }));
  if (all.length <= MODELS_SHOWN) return all;
  const [loaded, others] = [all.filter((model) => model.look), all.filter((model) => !model.look)];
  const shown = [...loaded, ...others].slice(0, MODELS_SHOWN - 1);
  return [...shown, { name: `and ${all.length - shown.length} more`, look: "more" }];
}

function buildModel() {
  const item = make("li");
  item.append(make("span"), make("span", "visually-hidden"));
  return item;
}

function updateModel(item, { name, look }) {
  const resident = look === "resident";
  write(item.firstChild, name);
  write(item.lastChild, resident ? ", in memory" : "");
  mark(item, "class", look);
  if (resident) mark(item, "title", "in memory");
  else item.removeAttribute("title");
}

function factsOf(node) {
  const facts = [`${node.in_flight} of ${node.slots} in use`];
  if (node.tokens_per_second && !tellsOf(node)) facts.push(`${node.tokens_per_second} tokens/s`);
  if (node.first_token_s) facts.push(`first token after ${node.first_token_s.toFixed(1)} s`);
  if (node.answered) facts.push(`${node.answered} answered`);
  if (node.failed) facts.push(`${node.failed} failed`);
  if (node.held_conversations) facts.push(`holds ${count(node.held_conversations, "conversation")}`);
  return facts.join(" · ");
}
