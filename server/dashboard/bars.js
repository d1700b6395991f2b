// How a model lies on its devices: one bar a device, all in one scale, from the records of /api/pipeline/status. The
// same file serves the node's page and the gateway's. Names of models and devices are set as text, never as markup;
// elements are kept and only what has changed is written, so that nothing flickers and no reader is told twice.

export const PARTS = [
  ["weights", "weights"],
  ["cache", "cache"],
  ["step", "a step's room"],
  ["lent", "lent to others"],
  ["others", "other models and tensors"],
  ["free", "free"],
  ["borrowed", "borrowed, lies elsewhere"],
];
const LOOKS = { starting: "busy", loading: "busy", ready: "good", running: "good", lost: "bad", stopping: "idle" };
const DEVICE_LOOKS = { present: "good", lost: "bad", leaving: "busy", gone: "idle" };
const DEVICE_WORDS = { present: "no layers here", lost: "lost", leaving: "leaving", gone: "gone" };
/** What happened to a device, behind its name. */
export const HAPPENED = {
  listed: "is listed", joined: "joined", lost: "was lost", leaving: "is leaving", left: "left",
  resized: "has another size", refused: "was refused", planned: "a new plan", switched: "the new plan took over",
};

// small words

export function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** One child of `list` an item: kept while its key stays, made when it is new, removed when it is gone.
 *  Of items with one key the first counts: nodes tell what they like, and twice at that. */
export function keep(list, items, keyOf, build, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const placed = new Set();
  let place = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    if (placed.has(key)) continue;
    placed.add(key);
    let child = known.get(key);
    if (child) {
      known.delete(key);
    } else {
      child = build(item);
      child.dataset.key = key;
    }
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

export const count = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;
export const whole = (number) => Math.round(number).toLocaleString("en");

export function size(bytes) {
  if (bytes >= 1e9) return bytes >= 1e11 ? `${Math.round(bytes / 1e9)} GB` : `${(bytes / 1e9).toFixed(2)} GB`;
  return bytes >= 1e7 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e6).toFixed(2)} MB`;
}

// what is shown, as values

/** Rows of one model: its stages in their order, then devices of the split without a layer. */
export function rowsOf(name, model, status) {
  const devices = new Map((status.devices ?? []).map((device) => [device.device, device]));
  const rows = model.stages.map((stage) => stageRow(name, stage, devices.get(stage.device), status));
  const used = new Set(model.stages.map((stage) => stage.device));
  if (model.split) {
    for (const device of devices.values()) {
      if (device.listed && !used.has(device.device) && device.state !== "gone") rows.push(idleRow(name, device, model, status));
    }
  }
  return rows;
}

function stageRow(name, stage, device, status) {
  const parts = {
    weights: stage.weights_bytes,
    cache: stage.cache_bytes,
    step: stage.step_bytes ?? 0,
    lent: stage.lent_bytes ?? 0,
    others: othersOn(name, stage.device, device, status),
  };
  return filled({
    key: `${stage.stage} ${stage.device}`,
    device: stage.device,
    title: layersOf(stage),
    state: stage.total_bytes > 0 && stage.state === "loading"
      ? `loading, ${Math.floor((100 * stage.loaded_bytes) / stage.total_bytes)} %`
      : stage.state,
    look: LOOKS[stage.state] ?? "idle",
    parts,
    borrowed: stage.borrowed_bytes ?? 0,
    stage,
  }, stage.budget_bytes ?? device?.budget_bytes);
}

function idleRow(name, device, model, status) {
  const lent = model.lent_bytes?.[device.device] ?? 0;
  const parts = { weights: 0, cache: 0, step: 0, lent, others: othersOn(name, device.device, device, status) };
  return filled({
    key: `- ${device.device}`,
    device: device.device,
    title: "",
    state: lent && device.state === "present" ? "lends memory" : DEVICE_WORDS[device.state] ?? device.state,
    look: device.state === "present" ? "idle" : DEVICE_LOOKS[device.state] ?? "idle",
    parts,
    borrowed: 0,
    stage: null,
  }, device.budget_bytes);
}

function filled(row, budget) {
  const used = Object.values(row.parts).reduce((sum, bytes) => sum + bytes, 0);
  row.total = Math.max(budget ?? 0, used);
  row.stated = budget !== null && budget !== undefined;
  row.parts.free = row.total - used;
  row.parts.borrowed = row.borrowed;
  return row;
}

/** What other models and clients' tensors hold of the device. */
function othersOn(name, where, device, status) {
  let held = device?.buffer_bytes ?? 0;
  for (const [other, model] of Object.entries(status.models)) {
    if (other === name) continue;
    for (const stage of model.stages) if (stage.device === where) held += stage.weights_bytes + stage.cache_bytes;
  }
  return held;
}

function layersOf(stage) {
  if (!stage.layers) return "";
  const last = stage.behind_layer - 1;
  return stage.layers === 1 ? `layer ${last}` : `layers ${stage.first_layer} to ${last}`;
}

function spoken(row) {
  const told = PARTS.filter(([part]) => row.parts[part] > 0).map(([part, words]) => `${words} ${size(row.parts[part])}`);
  return [`${row.device}${row.stated ? ` of ${size(row.total)}` : ""}`, ...told].join(", ");
}

// drawing

export function drawRows(list, rows, factsOf = () => "") {
  const scale = Math.max(...rows.map((row) => row.total + row.borrowed), 1);
  keep(list, rows, (row) => row.key, buildRow, (item, row) => updateRow(item, row, scale, factsOf(row)));
}

function buildRow(row) {
  const item = make("li", "stage");
  const top = make("div", "top");
  top.append(make("span", "name"), make("span", "layers"), make("span", "state"));
  const bar = make("div", "bar");
  bar.setAttribute("role", "img");
  for (const [part] of PARTS) bar.append(make("span", part));
  item.append(top, bar, make("div", "amounts"), make("div", "facts"));
  item.dataset.device = row.device;
  return item;
}

function updateRow(item, row, scale, facts) {
  const [top, bar, amounts, more] = item.children;
  const [name, layers, state] = top.children;
  mark(item, "class", `stage ${row.look}`);
  write(name, row.device);
  write(layers, [row.title, row.stated ? size(row.total) : ""].filter(Boolean).join(" · "));
  write(state, row.state);
  mark(bar, "aria-label", spoken(row));
  for (const segment of bar.children) {
    const bytes = row.parts[segment.className] ?? 0;
    const width = `${((100 * bytes) / scale).toFixed(3)}%`;
    if (segment.style.width !== width) segment.style.width = width;
    segment.hidden = bytes <= 0;
  }
  const told = PARTS.filter(([part]) => row.parts[part] > 0 && (part !== "free" || row.stated));
  keep(amounts, told, ([part]) => part, ([part]) => make("span", part), (child, [part, words]) => {
    write(child, `${part === "step" ? "step" : words.split(",")[0]} ${size(row.parts[part])}`);
  });
  write(more, facts);
  more.hidden = !facts;
}
