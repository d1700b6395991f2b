"""What `adb devices -l` lists -> phones, each once, with words that say what to do. Pure.

One phone may be listed twice (by cable and by Wi-Fi); `ro.serialno` tells. Some cheap phones all tell the same number,
and emulators do: well-known ones identify nobody, and phones that share another one differ by their boot. Formats:
adb's SERVICES.TXT and `adb devices -l` of 29.0.6 to 36.0.0.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

Details = dict[str, str | int | float]  # of `NodeSpec`

READY = "device"
UNNAMED_SERIAL = "????????????"  # what adb shows for a phone that tells none
# Numbers that whole series of phones share; with them the transport's own serial has to do.
SHARED_SERIALS = frozenset({"", "unknown", "0", "0123456789abcdef", "1234567890abcdef", "123456789abcdef", "123456"})
NOT_ANSWERING = (
    "it is here, but nothing answers at its port {port}: potluck adb setup brings what it needs; on a phone that was"
    " set up before, run ~/mobile-llm/start_ollama.sh in Termux"
)
SILENT = (
    "adb lists it, but it has stopped answering: is Ollama still running there (status.sh in Termux)? If adb answers"
    " nothing either, plug it in again, or switch wireless debugging off and on"
)
LOOSE = "its connection breaks off again and again: try another cable, another port or a powered hub"
HELD_OFF = LOOSE + "; it gets work when the connection has held for {seconds:g} s"
IN_USE = "local port {port} is taken by another program or phone: change 'port' of its entry in the fleet file"
TWICE = (
    "another phone on a cable tells the same serial number, and adb cannot tell forwards of the two apart: leave one on"
    " its cable and reach the other by Wi-Fi (potluck adb pair), where they differ"
)

# Longest first: `no permissions` has an explanation of adb's own behind it.
WORDS: Mapping[str, str] = {
    READY: "",
    "unauthorized": "the phone does not trust this computer yet: unlock it and tap Allow under 'Allow USB debugging?'"
    " (no question there? Developer options, Revoke USB debugging authorisations, plug it in again)",
    "authorizing": "the phone is being asked whether it trusts this computer: unlock it and tap Allow",
    "connecting": "the connection is being made",
    "offline": "adb lists it but it does not answer: plug it in again, or switch USB debugging off and on",
    "no permissions": "this user may not open the USB device: install the udev rules for Android (package"
    " android-sdk-platform-tools-common), join the group plugdev, and plug it in again",
    "detached": "another program holds the USB device: close it, or run adb attach",
    "bootloader": "it is in its bootloader: start Android",
    "fastboot": "it is in its bootloader: start Android",
    "recovery": "it is in recovery mode: start Android",
    "rescue": "it is in rescue mode: start Android",
    "sideload": "it waits for an update to be side-loaded: start Android",
    "host": "it is a computer, not a phone",
}
PASSING = ("offline", "connecting")  # a phone's last connection may be listed beside its new one for a moment
ADDRESSES = "ip -o addr"
# The chip's names are those that the set-up script asks for. The last commands may print anything.
QUESTION = (
    "getprop ro.serialno; getprop ro.product.model; getprop ro.build.version.release;"
    " getprop ro.soc.model; getprop ro.board.platform; getprop ro.hardware;"
    f" cat /proc/sys/kernel/random/boot_id /proc/meminfo; {ADDRESSES}"
)
MOST_ADDRESSES = 32
# Of these a phone is not reached, and several phones may have the same: mobile data, Wi-Fi Direct, itself.
UNREACHED = ("lo", "dummy", "rmnet", "ccmni", "pdp", "v4-", "p2p")
LONGEST_WORD = 100  # of what a phone tells: more is no product name
_SERIAL = re.compile(r"[!-~]+")
_BOOT = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*$", re.MULTILINE)
_ADDRESS = re.compile(r"^\d+: (\S+)\s+inet6? ([0-9A-Fa-f.:]{2,45})/", re.MULTILINE)
_MEMORY = re.compile(r"^MemTotal:\s*(\d{1,15})\s*kB", re.MULTILINE)
# A second phone of one mDNS name has a number behind it, with a space between.
_LINE = re.compile(r"(\S+(?: \(\d+\)\S*)?)\s+(\S.*)")
_DETAILS = re.compile(r"\b(product|model|device|transport_id|usb):(\S+)")


@dataclass(frozen=True, slots=True)
class Transport:
    """One line of the list: a way to a phone. `number` is new with every connection; 0 where adb tells none."""

    serial: str
    state: str
    model: str = ""
    number: int = 0

    @property
    def is_network(self) -> bool:
        return ":" in self.serial or "._adb" in self.serial

    @property
    def key(self) -> tuple[str, int]:
        """Differs from the same phone's last connection."""
        return self.serial, self.number


@dataclass(frozen=True, slots=True)
class Facts:
    """What a phone told by `getprop` and /proc, once for each connection. Empty and 0: it tells none."""

    serialno: str = ""
    model: str = ""
    android: str = ""
    chip: str = ""
    ram_bytes: int = 0
    boot: str = ""  # the same by every way to a phone, another one on every phone
    addresses: tuple[str, ...] = ()  # in the networks that it is in now


@dataclass(frozen=True, slots=True)
class AdbPhone:
    """A phone and the way to it that is used. `advice`: why it is not used, in words; empty when it can be."""

    id: str
    name: str
    transport: Transport
    serials: tuple[str, ...]
    known: bool = False  # it has told its facts
    advice: str = ""
    told: Facts = Facts()
    has_twin: bool = False  # another phone of its serial number hangs on this computer

    @property
    def usable(self) -> bool:
        return self.known and self.transport.state == READY and not self.advice


@dataclass(frozen=True, slots=True)
class Preferences:
    """Among several ways to one phone. See `phones_of`."""

    current: Mapping[str, str]
    avoided: Collection[str]
    in_use: Collection[tuple[str, int]]

    def rank(self, phone: str, way: Transport) -> tuple[bool | str, ...]:
        """The least is the best."""
        dead, other = way.serial in self.avoided, way.serial != self.current.get(phone)
        return way.state != READY, dead, other, way.is_network, way.serial, way.key not in self.in_use

    def is_told_apart(self, way: Transport, twins: Iterable[Transport]) -> bool:
        """Is it the one in use, or the only one that can be, and does adb number its connections?"""
        alone = way.state == READY and all(twin.state != READY for twin in twins)
        return way.number > 0 and (way.key in self.in_use or alone)


def parse_transports(text: str) -> tuple[Transport, ...]:
    """The lines of `host:devices-l` and `host:track-devices-l`; what is no such line is passed over."""
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] == "*" or line.startswith("List of"):
            continue
        serial, rest = match.groups()
        details = {name: value for name, value in _DETAILS.findall(rest)}
        number = details.get("transport_id", "")
        model = details.get("model", "").replace("_", " ")
        found.append(Transport(serial, _state(rest), model, int(number) if number.isdecimal() else 0))
    return tuple(found)


def parse_facts(text: str) -> Facts:
    """The answer to `QUESTION`: one value a line, the first of the chip's names that is there, the memory's size."""
    lines = [plain_word(line) for line in text.splitlines()]
    count = QUESTION.count("getprop")
    serialno, model, android, *chips = (lines + [""] * count)[:count]
    memory = _MEMORY.search(text)
    ram_bytes = int(memory[1]) * 1024 if memory else 0
    boot = _BOOT.search(text)
    chip = next(filter(None, chips), "")
    told_boot = boot[0].strip() if boot else ""
    return Facts(_serial_of(serialno), model, android, chip, ram_bytes, told_boot, parse_addresses(text))


def parse_addresses(text: str) -> tuple[str, ...]:
    """Of what `ADDRESSES` prints: those by which others may reach the phone, in their usual spelling."""
    found = []
    for interface, word in _ADDRESS.findall(text)[:MOST_ADDRESSES]:
        with suppress(ValueError):
            address = ipaddress.ip_address(word)
            if not interface.startswith(UNREACHED) and not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return tuple(sorted(found))


def is_whole(answer: str) -> bool:
    """Has every property its line? The end of a connection cuts an answer short without a word."""
    return answer.count("\n") >= QUESTION.count("getprop")


def details_of(phone: AdbPhone, ollama: str) -> Details:
    """What phones that join over the network tell of themselves, of one on a cable. Without what is not known."""
    told = phone.told
    found: Details = {"chip": told.chip, "ram_bytes": told.ram_bytes, "android": told.android, "ollama": ollama}
    found["mode"] = "usb"
    return {name: value for name, value in found.items() if value}


def plain_word(text: str) -> str:
    """A phone's word as it may stand in a table or a name: printable, short, without space around it."""
    return "".join(character for character in text if character.isprintable())[:LONGEST_WORD].strip()


def shown(text: str) -> str:
    """Text of a device or of adb as it may stand in a log: what could steer a terminal is spelled out."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def advice_for(state: str) -> str:
    """What to do about a state; for one that nobody has heard of, its name."""
    return WORDS.get(state, f"adb says {state!r}")


def phones_of(
    transports: Iterable[Transport],
    facts: Mapping[tuple[str, int], Facts],
    current: Mapping[str, str],
    avoided: Collection[str] = (),
    in_use: Collection[tuple[str, int]] = (),
) -> tuple[AdbPhone, ...]:
    """Each phone once. `current`: the serial used for a phone so far, which is kept while it works; `avoided`: serials
    that are listed and dead; `in_use`: the connections, of which one stays so where a twin is plugged in."""
    names = _names(_ways_of(list(transports), facts), current)
    used = Preferences(current, avoided, in_use)
    return tuple(_phone(name, found, facts, used) for name, found in names.items())


def _ways_of(
    transports: Sequence[Transport], facts: Mapping[tuple[str, int], Facts]
) -> list[tuple[str, list[Transport]]]:
    """Each phone's number and ways. Phones of one number are told apart by their boots, where they tell them."""
    serials = Counter(transport.serial for transport in transports)
    boots: dict[str, dict[str, list[Transport]]] = defaultdict(lambda: defaultdict(list))
    for transport in transports:
        told = facts.get(transport.key)
        boot = told.boot if told is not None and serials[transport.serial] == 1 else ""
        boots[_identity(transport, told)][boot].append(transport)
    for ways in boots.values():
        if len(ways) == 2 and "" in ways:  # who tells no boot is the one phone of that number
            untold = ways.pop("")
            next(iter(ways.values())).extend(untold)
    phones = [(number, found) for number, ways in boots.items() for found in ways.values()]
    return _by_cable_and_air(phones, facts)


def _by_cable_and_air(
    phones: list[tuple[str, list[Transport]]], facts: Mapping[tuple[str, int], Facts]
) -> list[tuple[str, list[Transport]]]:
    """Of those whose number identifies nobody: equal boot and addresses are one phone, if at most one has a cable.

    The boot alone does not tell: containers have that of their machine, emulators that of their snapshot.
    """
    found, alike = [], defaultdict(list)
    for number, ways in phones:
        told = facts.get(ways[0].key)
        if told is not None and _is_shared(told.serialno) and told.boot and told.addresses:
            alike[told.boot, told.addresses].append((number, ways))
        else:
            found.append((number, ways))
    for same in alike.values():
        together = [way for _, ways in same for way in ways]
        by_cable = [number for number, ways in same for way in ways if not way.is_network]
        number = by_cable[0] if by_cable else min(number for number, _ in same)
        found += [(number, together)] if len(by_cable) <= 1 else same
    return found


def _names(phones: Iterable[tuple[str, list[Transport]]], current: Mapping[str, str]) -> dict[str, list[Transport]]:
    """An id for each phone. Of those that tell one number one alone can have it; each keeps the id that it has."""
    names: dict[str, list[Transport]] = {}
    new = []
    for number, ways in phones:
        serials = {way.serial for way in ways}
        ids = (number, *sorted(map(shown, serials)))
        kept = next((name for name in ids if current.get(name) in serials), None)
        if kept is None:
            new.append((number, ways))
        else:
            names[kept] = ways
    for number, ways in new:
        names[shown(min(way.serial for way in ways)) if number in names else number] = ways
    return names


def _phone(
    identity: str, ways: list[Transport], facts: Mapping[tuple[str, int], Facts], preferences: Preferences
) -> AdbPhone:
    best = min(ways, key=lambda way: preferences.rank(identity, way))
    told = facts.get(best.key)
    serials = tuple(dict.fromkeys(way.serial for way in ways))
    advice = advice_for(best.state)
    twins = [way for way in ways if way.serial == best.serial and way is not best]
    if best.serial == UNNAMED_SERIAL:
        advice = advice or "it tells no serial number, so that nothing can be sent to it: plug it in again"
    elif twins and not preferences.is_told_apart(best, twins):
        advice = TWICE
    name = (told.model if told else "") or plain_word(best.model) or identity
    stale = all(way.state in PASSING for way in twins)
    return AdbPhone(identity, name, best, serials, told is not None, advice, told or Facts(), bool(twins) and not stale)


def _identity(transport: Transport, told: Facts | None) -> str:
    return shown(transport.serial) if told is None or _is_shared(told.serialno) else told.serialno


def _is_shared(serialno: str) -> bool:
    return serialno.lower() in SHARED_SERIALS or serialno.startswith("EMULATOR")


def _serial_of(text: str) -> str:
    """None where a shell's words stand instead of a number."""
    return text if _SERIAL.fullmatch(text) else ""


def _state(rest: str) -> str:
    for state in WORDS:
        if rest == state or rest.startswith((f"{state} ", f"{state};", f"{state}(")):
            return state
    return shown(rest.split()[0])
