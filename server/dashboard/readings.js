// What a phone tells of itself, as values: battery, heat, signal and speed, each with a word and a look, and why it
// rests. Pure. How much heat is too much the gateway decides (its owner sets the marks); the page repeats the verdict.

const OLD_MS = 180_000; // the reporter tells every half minute; what is older may be so no more
const HEAT_WORDS = {
  none: "", light: "a bit warm", moderate: "warm", severe: "hot", critical: "too hot", emergency: "far too hot",
  shutdown: "far too hot",
};
const HOT = new Set(["severe", "critical", "emergency", "shutdown"]);
// RSSI of Wi-Fi: from what an access point in the same room gives down to where packets are lost.
const SIGNALS = [[-55, 4, "strong"], [-67, 3, "good"], [-75, 2, "fair"], [-Infinity, 1, "weak"]];
const RESTS = [
  ["hot: ", "low battery: ", "Resting to cool down and charge"],
  ["hot: ", "", "Resting to cool down"],
  ["low battery: ", "", "Resting to charge"],
];
const UNTOLD = { look: "untold", value: "–", note: "not told" };

/** Does it tell of itself at all? A computer that was listed by hand does not. */
export function tells(node, phone) {
  return Boolean(phone.joined || node.condition || phone.signal_dbm != null || phone.origin === "adb");
}

/** Four readings, always in this order. `now`: milliseconds. */
export function readingsOf(node, phone, now) {
  const found = [batteryOf(node), heatOf(node), signalOf(phone), speedOf(node, phone)];
  return found.map((one) => (isOld(node, now) && one.kind !== "speed" ? { ...one, look: `${one.look} old` } : one));
}

/** Since when nothing was told, or null while it is fresh. */
export function oldSince(node, now) {
  return isOld(node, now) ? new Date(node.condition.told_at) : null;
}

function isOld({ condition }, now) {
  return Boolean(condition) && now - Date.parse(condition.told_at) > OLD_MS;
}

function batteryOf({ condition, resting }) {
  if (condition?.battery_percent == null) return { kind: "battery", title: "Battery", ...UNTOLD };
  const level = Math.min(100, Math.max(0, Math.round(condition.battery_percent)));
  const low = resting?.includes("low battery");
  const look = low ? "bad" : condition.charging || level > 30 ? "good" : level > 15 ? "warn" : "bad";
  const note = condition.charging ? "charging" : condition.charging === false ? "on battery" : "";
  return { kind: "battery", title: "Battery", look, value: `${level} %`, note, level };
}

function heatOf({ condition, resting, care_factor: share }) {
  const word = condition?.thermal_status;
  if (condition?.temperature_c == null && !word && !condition?.overheated) return { kind: "heat", title: "Heat", ...UNTOLD };
  const hot = condition.overheated || HOT.has(word) || resting?.startsWith("hot");
  const warm = word === "moderate" || (!resting && share < 1);
  const look = hot ? "bad" : warm ? "warn" : "good";
  const note = condition.overheated ? "overheated" : HEAT_WORDS[word] || (hot ? "hot" : warm ? "warm" : "");
  const degrees = condition.temperature_c == null ? null : `${Math.round(condition.temperature_c)} °C`;
  return { kind: "heat", title: "Heat", look, value: degrees ?? (note || "fine"), note: degrees ? note : "", status: word };
}

function signalOf({ signal_dbm: signal }) {
  if (signal == null) return { kind: "signal", title: "Signal", ...UNTOLD };
  const [, bars, word] = SIGNALS.find(([least]) => signal >= least);
  const look = bars > 2 ? "good" : bars > 1 ? "warn" : "bad";
  return { kind: "signal", title: "Signal", look, value: word, note: `${signal} dBm`, bars };
}

function speedOf(node, phone) {
  const speed = node.tokens_per_second ?? phone.tokens_per_second;
  if (speed == null) return { kind: "speed", title: "Speed", look: "untold", value: "–", note: "not known" };
  return { kind: "speed", title: "Speed", look: "", value: speed.toFixed(1), note: "tokens/s" };
}

/** The gateway's words, for a narrow place; numbers stay beside their units. */
const shorter = (words) => words.replaceAll(", rests until ", ", back at ").replace(/ (?=[%°])/g, "\u00a0");

/** Why it gets no work, or less: {title, detail}; null where it gets its share. */
export function careOf({ resting, care_factor: share }) {
  if (!resting) {
    return share < 1 ? { title: "Warm", detail: `gets ${Math.round(100 * share)} % of its usual work until it cools` } : null;
  }
  for (const [first, second, title] of RESTS) {
    if (!resting.startsWith(first) || (second && !resting.includes(second))) continue;
    return { title, detail: shorter(resting.replace(first, "").replace(second, "")) };
  }
  return { title: "Resting", detail: shorter(resting) };
}

/** What it is: chip, memory, Android. */
export function makeOf({ details }) {
  const parts = [details.chip];
  if (details.ram_bytes) parts.push(`${(details.ram_bytes / 2 ** 30).toFixed(1).replace(".0", "")}\u00a0GB\u00a0RAM`);
  if (details.android) parts.push(`Android\u00a0${details.android}`);
  if (details.mode && details.mode !== "native") parts.push(details.mode);
  return parts.filter(Boolean).join(" · ");
}
