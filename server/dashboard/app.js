// The page: the fleet once a second, and a conversation that is told as it comes. Text from nodes and models is set as
// text, never as markup.

import { count, make, write } from "./bars.js";
import { showCable } from "./cable.js";
import { chosen, showCards, summaryOf } from "./cards.js";
import { BROKEN, Refused, STRANGE, Unheard, call, forgetKey, hasKey, keepKey, read, records } from "./gateway.js";
import { isOpen, prepareInvite } from "./invite.js";
import { watchPhones } from "./phones.js";
import { watchSplits } from "./splits.js";
import { clock, mark, pause, seconds, seen } from "./words.js";

const EVERY_MS = 1000;
const MANY = 12; // more than these are not looked through one by one
const element = (id) => document.getElementById(id);
const messages = []; // the conversation so far, as the gateway wants it
let nodes = []; // as they were told last
let adb = null;
let heardAt = null; // when they were told
let running = null; // the AbortController of the answer being told

// small words

const show = (id, text) => write(element(id), String(text));

function notice(text) {
  element("notice").hidden = !text;
  show("notice", text ?? "");
}

function askForKey(wanted, refused) {
  const form = element("key-form");
  if (wanted && form.hidden) {
    form.hidden = false;
    element("key").focus();
  }
  if (!wanted) form.hidden = true;
  if (wanted && refused) notice("The gateway does not know this key.");
}

// the fleet

function showFleet(health) {
  const usable = health.nodes.filter((node) => node.status === "ready" && node.breaker !== "open" && !node.resting);
  const busy = health.nodes.reduce((sum, node) => sum + node.in_flight, 0);
  show("figure-nodes", `${usable.length}/${health.nodes.length}`);
  show("figure-busy", busy);
  show("figure-waiting", health.queue.waiting ?? 0);
  show("figure-hits", health.cache.hits ?? 0);
  show("summary", health.draining ? "The gateway is being stopped." : summaries[health.status] ?? health.status);
  show("version", `Potluck ${health.version}`);
  showNodes(health.nodes, health.adb);
  [nodes, adb] = [health.nodes, health.adb]; // now that they could be shown
  heardAt = Date.now();
  mark(element("fleet"), "class", "");
  show("fleet-summary", summaryOf(nodes));
  showCable(adb);
  showNobody(health.embedded);
  showModels(health.nodes);
  notice(health.fleet_file.error ? `${health.fleet_file.path}: ${health.fleet_file.error}` : null);
}

function showNodes(known = nodes, cables = adb) {
  const [only, label] = [element("only"), element("only-label")];
  label.hidden = known.length <= MANY;
  if (label.hidden) only.value = "";
  showCards(element("nodes"), chosen(known, only.value), cables);
}

function showNobody(embedded) {
  const [nobody, only] = [element("no-nodes"), element("only")];
  nobody.hidden = element("nodes").childElementCount > 0;
  if (nodes.length) write(nobody, `None is ${only.selectedOptions[0].text} now.`);
  else if (embedded?.starting && !embedded.reason) write(nobody, "The embedded model is starting…");
  else write(nobody, embedded?.reason ?? "No phones are listed yet: invite one, or add it to phones.json.");
}

const summaries = {
  ok: "Everything is ready.",
  degraded: "Some nodes are missing or resting; the others answer.",
  unavailable: "No node can answer now.",
};

function showModels(nodes) {
  const names = [...new Set(nodes.flatMap((node) => (node.status === "ready" ? node.models : [])))].sort();
  const select = element("model");
  const known = [...select.options].slice(1).map((option) => option.value);
  if (names.join("\n") === known.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

async function watchFleet() {
  for (await seen(); ; await pause(EVERY_MS)) {
    try {
      showFleet(await read("/health"));
      askForKey(false);
    } catch (error) {
      missFleet(error);
    }
  }
}

/** What is shown stays, and says of when it is. */
function missFleet(error) {
  const locked = error.status === 401;
  const inWords = error instanceof Refused || error instanceof Unheard;
  if (locked) {
    askForKey(true, hasKey());
    forgetKey();
  }
  if (!inWords) console.warn(error);
  show("summary", locked ? "Locked." : inWords ? error.message : STRANGE);
  if (!heardAt) return;
  show("fleet-summary", `As it was at ${clock(heardAt)}`);
  mark(element("fleet"), "class", "stale");
}

// asking

function openAnswer(question) {
  element("empty").hidden = true;
  const article = make("article");
  const parts = {
    article,
    thinking: make("div", "thinking"),
    told: make("div", "told running"),
    facts: make("div", "facts"),
  };
  article.append(make("div", "question", question), parts.thinking, parts.told, parts.facts);
  element("thread").append(article);
  parts.told.scrollIntoView({ block: "nearest" });
  return parts;
}

function factsOf(done) {
  const facts = [done.node];
  if (done.cached) facts.push("from the cache");
  if (done.tokens_per_second) facts.push(`${done.tokens_per_second.toFixed(1)} tokens/s`);
  facts.push(count(done.usage.completion_tokens, "token"), seconds(done.timings_ms.total));
  if (done.nodes.length > 1) facts.push(`told by ${done.nodes.map((share) => share.node).join(", then ")}`);
  if (done.done_reason === "length") facts.push("cut at its limit");
  return facts.join(" · ");
}

function take(record, parts, answer) {
  const thread = element("thread");
  const following = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 40; // not while reading above
  if (record.token !== undefined) {
    answer.text += record.token;
    parts.told.append(record.token);
    parts.facts.textContent = "";
  } else if (record.thinking !== undefined) {
    parts.thinking.append(record.thinking);
  } else if (record.queued !== undefined) {
    parts.facts.textContent = `Waiting, place ${record.queued}.`;
  } else if (record.done) {
    answer.done = true;
    parts.facts.textContent = factsOf(record);
  } else if (record.error) {
    throw new Refused(0, record);
  }
  if (following) thread.scrollTop = thread.scrollHeight;
}

async function ask(question) {
  const parts = openAnswer(question);
  const answer = { text: "", done: false };
  const asked = [...messages, { role: "user", content: question }];
  running = new AbortController();
  setRunning(true);
  try {
    const body = { messages: asked, progress: true };
    if (element("model").value) body.model = element("model").value;
    const response = await call("/ask_stream", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    for await (const record of records(response)) take(record, parts, answer);
    if (!answer.done) throw new Unheard(BROKEN);
  } catch (error) {
    if (error.status === 401) askForKey(true, hasKey());
    const stopped = error.name === "AbortError";
    parts.facts.textContent = stopped ? "Stopped." : error.message;
    parts.facts.classList.toggle("trouble", !stopped);
  } finally {
    parts.told.classList.remove("running");
    if (answer.text) messages.push(asked.at(-1), { role: "assistant", content: answer.text });
    running = null;
    setRunning(false);
  }
}

function setRunning(yes) {
  element("thread").setAttribute("aria-busy", String(yes)); // an answer is read out when it is whole, not word by word
  element("send").disabled = yes;
  element("stop").hidden = !yes;
  element("fresh").hidden = yes || messages.length === 0;
}

element("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = element("prompt").value.trim();
  if (!question || running) return;
  element("prompt").value = "";
  ask(question);
});

element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask-form").requestSubmit();
  }
});

element("only").addEventListener("change", () => {
  showNodes();
  showNobody();
});

element("stop").addEventListener("click", () => running?.abort());

element("fresh").addEventListener("click", () => {
  messages.length = 0;
  for (const article of element("thread").querySelectorAll("article")) article.remove();
  element("empty").hidden = false;
  setRunning(false);
  element("prompt").focus();
});

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(element("key").value.trim());
  element("key").value = "";
  notice(null);
  askForKey(false);
  element("prompt").focus(); // the field that had it is gone; a key that is wrong takes it back
});

prepareInvite();
watchFleet();
watchPhones(() => isOpen() || nodes.some((node) => node.kind === "ollama"), showNodes);
watchSplits(read, () => nodes.some((node) => node.gpu_node), showNodes);
