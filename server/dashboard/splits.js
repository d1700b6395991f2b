// In the card of a node that runs a split model: a bar for each of its devices, and what happened to them last. Asked for
// every two seconds, and only where there is a GPU node and somebody looks.

import { pause, seen } from "./words.js";
import { HAPPENED, count, drawRows, keep, make, rowsOf, write } from "./bars.js";

const EVERY_MS = 2000;
const SHOWN_EVENTS = 3;
const STATES = { changing: "a new plan takes over", broken: "cannot run" };
let told = new Map(); // by the node's id

/** The part of a node's card; `showSplits` fills it. */
export function buildSplits() {
  const part = make("div", "splits");
  part.append(make("div", "split-models"), make("ul", "events"));
  part.hidden = true;
  return part;
}

export function showSplits(part, id) {
  const status = told.get(id);
  const models = Object.entries(status?.models ?? {}).filter(([, model]) => model.split);
  part.hidden = !models.length;
  try {
    if (models.length) fill(part, models, status);
  } catch {
    part.hidden = true; // a node that tells it in another way must not take the fleet's page with it
  }
}

function fill(part, models, status) {
  const [splits, events] = part.children;
  keep(splits, models, ([name]) => name, buildModel, (item, [name, model]) => updateModel(item, name, model, status));
  const latest = status.events.slice(-SHOWN_EVENTS).reverse().map((event) => ({ ...event, text: eventText(event) }));
  events.hidden = !latest.length;
  keep(events, latest, (event) => `${event.at} ${event.text}`, () => make("li", "facts"), (item, event) => {
    write(item, event.text);
  });
}

function buildModel() {
  const item = make("div", "split-model");
  item.append(make("div", "place"), make("div", "error"), make("ol", "stages"));
  return item;
}

function updateModel(item, name, model, status) {
  const [title, error, stages] = item.children;
  const facts = [name, count(model.stages.length, "stage")];
  if (model.depth > 1) facts.push(`${model.depth} steps at once`);
  if (STATES[model.pipeline]) facts.push(STATES[model.pipeline]);
  write(title, facts.join(" · "));
  write(error, model.error ?? "");
  error.hidden = !model.error;
  drawRows(stages, rowsOf(name, model, status));
}

function eventText(event) {
  const what = [event.device, HAPPENED[event.what] ?? event.what].filter(Boolean).join(" ");
  const when = new Date(event.at * 1000).toLocaleTimeString();
  return `${when} ${what}${event.detail ? `: ${event.detail}` : ""}`;
}

/** Asks as long as the page is open. `ask` gives a path's record, `wanted` says whether there is anybody to ask. */
export async function watchSplits(ask, wanted, changed) {
  for (await seen(); ; await pause(EVERY_MS)) {
    if (!wanted()) continue;
    try {
      const status = await ask("/api/pipeline/status");
      told = new Map(status.nodes.map((node) => [node.id, node]));
    } catch {
      told = new Map(); // the fleet's own look tells what is wrong
    }
    changed();
  }
}
