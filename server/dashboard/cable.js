// Phones on a cable that are not of use yet, and what to do about it, in the gateway's words; there only when there are
// any, and then above all cards: somebody has to do something. What adb and the phones say is set as text, never as markup.

import { keep, make, write } from "./bars.js";
import { mark } from "./words.js";

const LOOKS_BEFORE_SHOWN = 2; // a phone that was just plugged in has a trouble for a moment, while it is being asked
const element = (id) => document.getElementById(id);
let lasting = new Map(); // how often each trouble was seen in a row

/** The card's words for where it is: a phone on a cable has no address of its own. */
export function cableOf(adb, node) {
  return adb?.phones?.find((phone) => phone.node === node.id && phone.local_port != null);
}

/** `adb` is what /health tells; null where there is no tracker. */
export function showCable(adb) {
  const troubled = (adb?.phones ?? []).filter((phone) => phone.problem);
  lasting = new Map(troubled.map((phone) => [keyOf(phone), (lasting.get(keyOf(phone)) ?? 0) + 1]));
  const shown = troubled.filter((phone) => lasting.get(keyOf(phone)) >= LOOKS_BEFORE_SHOWN);
  const server = adb?.mode === "on" && adb.problem ? `adb: ${adb.problem}` : "";
  write(element("cable-server"), server);
  element("cable-server").hidden = !server;
  keep(element("cable-phones"), shown, (phone) => phone.serial, build, update);
  element("cable").hidden = !server && !shown.length;
}

const keyOf = ({ serial, problem }) => `${serial} ${problem}`;

function build(phone) {
  const item = make("li", "panel");
  const top = make("div", "top");
  top.append(make("span", "name"), make("span", "serial"), make("span", "state"));
  item.append(top, make("p", "problem"));
  item.dataset.serial = phone.serial;
  return item;
}

function update(item, phone) {
  const [name, serial, state] = item.firstChild.children;
  write(name, phone.name);
  write(serial, phone.name === phone.serial ? "" : phone.serial);
  write(state, phone.state === "device" ? "connected" : phone.state);
  mark(item, "class", phone.state === "device" ? "panel" : "panel bad");
  write(item.lastChild, phone.problem);
}
