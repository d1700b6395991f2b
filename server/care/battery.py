"""What Android and Termux say of a battery -> `Condition`. Never raises: a word that means nothing is not told.

`dumpsys battery` prints `key: value` lines and vendors add their own (Samsung a second `charge counter` in small
letters), so keys are compared exactly and the first of each counts. Units are not guaranteed: a television box says
`temperature: 26` beside `voltage: 13`. Enums come as numbers or as words. Termux leaves out what it does not know.
Formats: AOSP BatteryService and BatteryManager, Termux:API's BatteryStatusAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.care.condition import Condition
from server.care.units import celsius, number

MOST_TEXT = 1 << 18  # characters; a dump has some thousand
LEAST_MILLIVOLTS = 1000.0  # below, the voltage is in volts, and so is nothing else of that dump in Android's units
HELD_ABOVE_LEVEL = 40.0  # percent; no charger's limit is lower: below, "not charging" beside a plug means what it says
CHARGING, DISCHARGING, HELD = ("2", "5", "charging", "full"), ("3", "discharging"), ("4", "not_charging")
HEALTHS = {"2": False, "3": True, "4": False, "5": False, "6": False, "7": False}  # is it overheated?
HEALTH_WORDS = ("good", "overheat", "dead", "over_voltage", "unspecified_failure", "cold")  # of 2 to 7
PLUGS = {"0": False, "unplugged": False, "none": False, **dict.fromkeys(("1", "2", "4", "8"), True)}
PLUG_WORDS = ("ac", "usb", "wireless", "dock")
POWERED_KEYS = ("AC powered", "USB powered", "Wireless powered", "Dock powered")


def parse_dumpsys_battery(text: str, at: float) -> Condition:
    """The condition that `dumpsys battery` tells; `at`: when, wall clock seconds."""
    told = _lines(text)
    if told.get("present", "").lower() == "false":
        return Condition(at=at)  # a box without a battery: whatever stands for its level is none
    plugs = [told[key].lower() == "true" for key in POWERED_KEYS if key in told]
    powered, status = any(plugs) if plugs else None, _word(told.get("status"))
    level = _gauged(_percent(number(told.get("level")), number(told.get("scale"))), status, powered)
    return Condition(
        level=level,
        charging=_charging(status, powered, level),
        temperature_c=_dumped_degrees(told.get("temperature", ""), number(told.get("voltage"))),
        at=at,
        overheated=_overheated(told.get("health")),
    )


def parse_termux_battery(said: str | bytes | Mapping[str, Any] | object, at: float) -> Condition:
    """The condition that `termux-battery-status` tells, as text or already decoded; `at`: when, wall clock seconds."""
    if isinstance(said, str | bytes):
        said = _decoded(said)
    if not isinstance(said, Mapping) or said.get("present") is False:
        return Condition(at=at)
    percentage = _percent(number(said.get("percentage")), 100.0)
    if percentage is None:
        percentage = _percent(number(said.get("level")), number(said.get("scale")))
    status, powered = _word(said.get("status")), _powered(said.get("plugged"))
    level = _gauged(percentage, status, powered)
    return Condition(
        level=level,
        charging=_charging(status, powered, level),
        temperature_c=celsius(number(said.get("temperature")), 1.0, 10.0),
        at=at,
        overheated=_overheated(said.get("health")),
    )


def _lines(text: str) -> dict[str, str]:
    """`key: value` lines, the first of each key."""
    told: dict[str, str] = {}
    for line in text[:MOST_TEXT].splitlines():
        key, colon, value = line.partition(":")
        if colon:
            told.setdefault(key.strip(), value.strip())
    return told


def _decoded(said: str | bytes) -> object:
    try:
        return orjson.loads(said[:MOST_TEXT])
    except (orjson.JSONDecodeError, UnicodeError):
        return None


def _word(value: object) -> str:
    """An enum's value in one spelling: `Not charging`, `NOT_CHARGING` and `BATTERY_STATUS_NOT_CHARGING` are one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    word = str(value)[:64] if isinstance(value, str) else format(value, "d") if abs(value) < 100 else ""
    word = word.strip().lower().replace(" ", "_").replace("-", "_").removeprefix("battery_")
    for family in ("status_", "health_", "plugged_"):
        word = word.removeprefix(family)
    return word


def _overheated(value: object) -> bool | None:
    """None where nothing, or nothing known, is said of its health."""
    word = _word(value)
    return word == "overheat" if word in HEALTH_WORDS else HEALTHS.get(word)


def _powered(value: object) -> bool | None:
    word = _word(value)
    return True if word in PLUG_WORDS else PLUGS.get(word)


def _percent(level: float | None, scale: float | None) -> float | None:
    if level is None:
        return None
    percent = 100.0 * level / scale if scale is not None and scale > 0 else level
    return percent if 0.0 <= percent <= 100.0 else None


def _gauged(level: float | None, status: str, powered: bool | None) -> float | None:
    """None for the 0 of a phone that runs on a supply in its battery's place: who is at 0 and loses is off soon."""
    return None if level == 0.0 and powered and status not in DISCHARGING else level


def _charging(status: str, powered: bool | None, level: float | None) -> bool | None:
    """Does it keep its charge? Plugged in and losing is not charging; held by a charger's limit is as good."""
    if status in CHARGING:
        return True
    if status in DISCHARGING:
        return False
    if status in HELD:
        return powered is True and (level is None or level >= HELD_ABOVE_LEVEL)
    return powered


def _dumped_degrees(text: str, voltage: float | None) -> float | None:
    """Tenths of a degree, unless a decimal point, or what stands beside them, shows that this dump has other units."""
    in_volts = voltage is not None and 0 < voltage < LEAST_MILLIVOLTS
    if "." in text or "," in text or in_volts:
        return celsius(number(text), 1.0, 10.0, 1000.0)
    return celsius(number(text), 10.0, 100.0, 1000.0)
