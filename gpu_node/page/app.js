// The node's page: its models, how each lies on the devices, and what happened to them, once a second. Text is set as
// text, never as markup. The API key lives in this tab's session storage and travels as a header.

import { HAPPENED, count, drawRows, keep, make, rowsOf, size, whole, write } from "./bars.js";

const EVERY_MS = 1000;
const SHOWN_EVENTS = 50;
const KEY = "potluck-key";
const element = (id) => document.getElementById(id);
const busyBefore = new Map(); // of each stage: its busy seconds at the last look, and when that was

// talking to the node

class Refused extends Error {
  constructor(status, record) {
    super(record?.error ?? `the node answered ${status}`);
    this.status = status;
  }
}

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (response.ok) return response.json();
  throw new Refused(response.status, await response.json().catch(() => null));
}

function notice(text) {
  element("notice").hidden = !text;
  write(element("notice"), text ?? "");
}

function askForKey(wanted, refused) {
  const form = element("key-form");
  if (wanted && form.hidden) {
    form.hidden = false;
    element("key").focus();
  }
  if (!wanted) form.hidden = true;
  if (wanted) element("facts").hidden = true;
  if (wanted && refused) notice("The node does not know this key.");
}

// models

const STATES = {
  empty: "not in memory",
  loading: "loading",
  ready: "in memory",
  failed: "failed",
  unloading: "leaving",
  closed: "stopping",
};

function stateOf(model) {
  if (model.state !== "ready") return STATES[model.state] ?? model.state;
  if (model.pipeline === "changing") return "a new plan takes over";
  if (model.pipeline === "broken") return "cannot run";
  return model.running ? "answering" : "ready";
}

function factsOf(model) {
  if (!model.stages.length) return model.activity ?? "";
  const facts = [`context ${whole(model.context_length)}`];
  if (model.dtype) facts.push(model.dtype);
  facts.push(model.stages.length > 1 ? count(model.stages.length, "stage") : "one device");
  if (model.split) {
    facts.push(`plan ${model.epoch}`, `${count(model.depth, "step")} at once`);
    if (model.measured_step_seconds) facts.push(stepText(model));
  }
  facts.push(`${model.tokens_per_second.toFixed(1)} tokens/s`, `${model.running} of ${model.max_running} running`);
  if (model.waiting) facts.push(`${model.waiting} waiting`);
  return facts.join(" · ");
}

function stepText(model) {
  const measured = `${milliseconds(model.measured_step_seconds)} a step`;
  const predicted = model.predicted_step_seconds;
  return predicted ? `${measured}, ${milliseconds(predicted)} predicted` : measured;
}

const milliseconds = (seconds) => `${(seconds * 1000).toFixed(seconds < 0.01 ? 2 : 1)} ms`;

function stageFacts(name, row) {
  const stage = row.stage;
  if (!stage) return "";
  const facts = [];
  const busy = busyShare(`${name} ${row.key}`, stage);
  if (busy !== null) facts.push(`${Math.round(100 * busy)} % busy`);
  if (stage.steps) facts.push(count(stage.steps, "step"));
  if (stage.blocks) facts.push(count(stage.blocks, "block") + (stage.far_blocks ? ` and ${whole(stage.far_blocks)} far` : ""));
  if (stage.hop_microseconds !== null) facts.push(`${Math.round(stage.hop_microseconds)} µs a hop`);
  if (stage.heard_seconds_ago > 0.5) facts.push(`silent for ${stage.heard_seconds_ago.toFixed(1)} s`);
  if (stage.pid !== null) facts.push(`process ${stage.pid}`);
  return facts.join(" · ");
}

function busyShare(key, stage) {
  const now = performance.now() / 1000;
  const before = busyBefore.get(key);
  if (!before || now - before.at > 0.5 || stage.busy_seconds < before.busy) {
    const share = before && stage.busy_seconds >= before.busy ? (stage.busy_seconds - before.busy) / (now - before.at) : null;
    const known = stage.busy_seconds > 0 && share !== null ? Math.min(share, 1) : null;
    busyBefore.set(key, { at: now, busy: stage.busy_seconds, share: known });
    return known;
  }
  return before.share;
}

function buildModel([name]) {
  const card = make("li", "panel model");
  const top = make("div", "top");
  top.append(make("h3", "name", name), make("span", "state"));
  const loading = make("div", "loading");
  const progress = make("progress");
  progress.setAttribute("aria-label", `loading ${name}`);
  loading.append(progress, make("div", "facts"));
  const plan = make("details");
  plan.append(make("summary", "", "The plan"), make("div", "reason"), make("pre"));
  card.append(top, make("div", "facts"), loading, make("div", "error"), make("ol", "stages"), make("ul", "leases"), plan);
  card.dataset.model = name;
  return card;
}

function updateModel(card, [name, model], status) {
  const [top, facts, loading, error, stages, leases, plan] = card.children;
  write(top.children[1], stateOf(model));
  write(facts, factsOf(model));
  facts.hidden = !facts.textContent;
  showLoading(loading, model);
  write(error, model.error ?? "");
  error.hidden = !model.error;
  const rows = rowsOf(name, model, status);
  stages.hidden = !rows.length;
  drawRows(stages, rows, (row) => stageFacts(name, row));
  showLeases(leases, model.lending);
  plan.hidden = !model.plan && !model.picture.length;
  write(plan.children[1], planText(model));
  write(plan.children[2], model.picture.join("\n"));
  plan.children[2].hidden = !model.picture.length;
}

function showLoading(loading, model) {
  const [progress, text] = loading.children;
  loading.hidden = model.state !== "loading";
  if (loading.hidden) return;
  const known = model.total_bytes > 0;
  if (known) {
    progress.max = model.total_bytes;
    progress.value = model.loaded_bytes;
  } else {
    progress.removeAttribute("value");
  }
  write(text, known ? `${size(model.loaded_bytes)} of ${size(model.total_bytes)} read` : "");
}

function planText(model) {
  const told = [];
  if (model.plan) {
    const { capacity_tokens: room, strategy, reason } = model.plan;
    told.push(`${strategy ?? "one device"}: room for ${whole(room ?? 0)} tokens${reason ? `; ${reason}` : ""}.`);
  }
  const depths = Object.entries(model.depths_measured);
  if (depths.length) told.push(`Measured: ${depths.map(([depth, speed]) => `${depth} at once ${speed.toFixed(1)} tokens/s`).join(", ")}.`);
  if (model.last_recovery_seconds !== null) told.push(`The last loss cost ${model.last_recovery_seconds.toFixed(1)} s.`);
  return told.join(" ");
}

function showLeases(list, lending) {
  const leases = lending?.leases ?? [];
  list.hidden = !lending;
  if (!lending) return;
  const host = lending.host_bytes ? [{ number: "host", host: true }] : [];
  keep(list, [...leases, ...host], (lease) => String(lease.number), () => make("li"), (item, lease) => {
    write(item, lease.host ? `${size(lending.host_bytes)} of reclaimed blocks lie in host memory` : leaseText(lease));
  });
  list.hidden = !list.children.length;
}

function leaseText(lease) {
  const age = lease.age_seconds < 90 ? `${Math.round(lease.age_seconds)} s` : `${Math.round(lease.age_seconds / 60)} min`;
  return `${lease.lender} lends ${lease.holder} ${count(lease.blocks, "block")} (${size(lease.size_bytes)}) · `
    + `${lease.state} · priority ${lease.priority} · for ${age}`;
}

// devices and what happened to them

const DEVICE_LOOKS = { present: "good", lost: "bad", leaving: "busy", gone: "idle" };

function buildDevice(device) {
  const item = make("li", "device");
  const top = make("div", "top");
  top.append(make("span", "name", device.device), make("span", "state"));
  item.append(top, make("div", "facts"), make("div", "reason"));
  item.dataset.device = device.device;
  return item;
}

function updateDevice(item, device) {
  const [top, facts, reason] = item.children;
  item.className = `device ${DEVICE_LOOKS[device.state] ?? "idle"}`;
  write(top.children[1], device.state);
  const told = [device.budget_bytes === null ? "" : size(device.budget_bytes)];
  if (device.speed !== null && device.speed !== 1) told.push(`at ${device.speed} of its speed`);
  if (device.losses) told.push(`lost ${count(device.losses, "time")}`);
  write(facts, told.filter(Boolean).join(" · "));
  write(reason, device.reason ?? "");
  reason.hidden = !device.reason;
}

function buildEvent(event) {
  const item = make("li", "event");
  const top = make("div", "top");
  const when = new Date(event.at * 1000);
  const time = make("time", "", when.toLocaleTimeString());
  time.dateTime = when.toISOString();
  time.title = when.toLocaleString();
  top.append(make("span", "name", event.device), make("span", "", HAPPENED[event.what] ?? event.what), time);
  item.append(top);
  if (event.detail) item.append(make("div", "facts", event.detail));
  return item;
}

function showEvents(events) {
  const seen = new Map(); // two events may be alike in all they say
  const keyed = events.map((event) => {
    const said = `${event.at} ${event.device} ${event.what} ${event.detail}`;
    seen.set(said, (seen.get(said) ?? 0) + 1);
    return { ...event, key: `${said} ${seen.get(said)}` };
  });
  element("no-events").hidden = events.length > 0;
  element("events").hidden = !events.length;
  keep(element("events"), keyed.slice(-SHOWN_EVENTS).reverse(), (event) => event.key, buildEvent, () => {});
}

// all of it

function summaryOf(models) {
  const broken = models.find((model) => model.pipeline === "broken");
  if (broken) return "The model cannot run now.";
  if (models.some((model) => model.pipeline === "changing")) return "A new plan is taking over.";
  if (models.some((model) => model.state === "loading")) return "A model is being loaded.";
  if (models.some((model) => model.state === "ready")) return models.some((model) => model.running) ? "Answering." : "Ready.";
  return models.some((model) => model.state === "failed") ? "The model could not be loaded." : "No model is in memory.";
}

function show(status) {
  const named = Object.entries(status.models);
  const models = named.map(([, model]) => model);
  const sum = (name) => models.reduce((total, model) => total + model[name], 0);
  const present = status.devices.filter((device) => device.state === "present");
  write(element("summary"), summaryOf(models));
  write(element("figure-speed"), sum("tokens_per_second").toFixed(1));
  write(element("figure-running"), whole(sum("running")));
  write(element("figure-waiting"), whole(sum("waiting")));
  write(element("figure-devices"), `${present.length}/${status.devices.length}`);
  element("facts").hidden = false;
  element("no-models").hidden = models.some((model) => model.state !== "empty");
  keep(element("models"), named, ([name]) => name, buildModel, (card, entry) => updateModel(card, entry, status));
  keep(element("devices"), status.devices, (device) => device.device, buildDevice, updateDevice);
  showEvents(status.events);
}

async function look() {
  try {
    const status = await ask("/api/pipeline/status");
    askForKey(false);
    notice(null);
    show(status);
  } catch (error) {
    if (error.status === 401) {
      askForKey(true, sessionStorage.getItem(KEY) !== null);
      sessionStorage.removeItem(KEY);
      write(element("summary"), "Locked.");
    } else if (error instanceof Refused) {
      write(element("summary"), "The node refuses this page.");
      notice(error.message);
    } else {
      write(element("summary"), "The node does not answer.");
      if (!(error instanceof TypeError)) console.error(error); // what fetch says of a node that is away
    }
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, element("key").value.trim());
  element("key").value = "";
  notice(null);
  askForKey(false);
  look();
});

watch();
