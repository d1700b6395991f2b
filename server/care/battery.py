"""What Android and Termux say of a battery -> `Condition`. Never raises: a word that means nothing is not told.

`dumpsys battery` prints `key: value` lines and vendors add their own (Samsung a second `charge counter` in small
letters), so keys are compared exactly and the first of each counts. Units are not guaranteed: a television box says
`temperature: 26` beside `voltage: 13`. Termux leaves out what it does not know. Formats: AOSP BatteryService,
Termux:API's BatteryStatusAPI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from server.care.condition import Condition

MOST_TEXT = 1 << 18  # characters; a dump has some thousand
MOST_DIGITS = 12
COLDEST_C, HOTTEST_C = -40.0, 120.0  # beyond, it is no temperature but another unit, or a sensor's excuse
LEAST_MILLIVOLTS = 1000.0  # below, the voltage is in volts, and so is nothing else of that dump in Android's units
OVERHEAT_CODE = "3"
DISCHARGING, HELD = ("3", "discharging"), ("4", "not_charging")
CHARGING = ("2", "5", "charging", "full")
POWERED_KEYS = ("AC powered", "USB powered", "Wireless powered", "Dock powered")


def parse_dumpsys_battery(text: str, at: float) -> Condition:
    """The condition that `dumpsys battery` tells; `at`: when, wall clock seconds."""
    told = _lines(text)
    if told.get("present", "").lower() == "false":
        return Condition(at=at)  # a box without a battery: whatever stands for its level is none
    powered = [told[key].lower() == "true" for key in POWERED_KEYS if key in told]
    return Condition(
        level=_percent(_number(told.get("level")), _number(told.get("scale"))),
        charging=_charging(told.get("status", "").lower(), any(powered) if powered else None),
        temperature_c=_degrees(_number(told.get("temperature")), _number(told.get("voltage"))),
        at=at,
        overheated=told.get("health") == OVERHEAT_CODE,
    )


def parse_termux_battery(said: str | bytes | Mapping[str, Any] | object, at: float) -> Condition:
    """The condition that `termux-battery-status` tells, as text or already decoded; `at`: when, wall clock seconds."""
    if isinstance(said, str | bytes):
        said = _decoded(said)
    if not isinstance(said, Mapping) or said.get("present") is False:
        return Condition(at=at)
    percentage = _number(said.get("percentage"))
    if percentage is None:
        percentage = _percent(_number(said.get("level")), _number(said.get("scale")))
    plugged = said.get("plugged")
    powered = plugged != "UNPLUGGED" if isinstance(plugged, str) and plugged else None
    return Condition(
        level=_percent(percentage, 100.0),
        charging=_charging(str(said.get("status", "")).lower(), powered),
        temperature_c=_plausible(_number(said.get("temperature"))),
        at=at,
        overheated=said.get("health") == "OVERHEAT",
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


def _number(value: object) -> float | None:
    """A finite number, from text too; None for all else."""
    if isinstance(value, str) and 0 < len(value) <= MOST_DIGITS:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        return None
    return float(value) if math.isfinite(value) else None


def _percent(level: float | None, scale: float | None) -> float | None:
    if level is None:
        return None
    percent = 100.0 * level / scale if scale is not None and scale > 0 else level
    return percent if 0.0 <= percent <= 100.0 else None


def _charging(status: str, powered: bool | None) -> bool | None:
    """Does it keep its charge? Plugged in and losing is not charging; held by a charger's limit is as good."""
    if status in CHARGING:
        return True
    if status in DISCHARGING:
        return False
    return powered if status not in HELD or powered is not None else False


def _degrees(value: float | None, voltage: float | None) -> float | None:
    """Tenths of a degree, unless what stands beside them shows that this dump has other units."""
    if value is None:
        return None
    if voltage is not None and 0 < voltage < LEAST_MILLIVOLTS and abs(value) < 100.0:
        return _plausible(value)
    tenths = value / 10.0
    return _plausible(tenths if tenths <= HOTTEST_C else value / 1000.0)


def _plausible(celsius: float | None) -> float | None:
    """Sensors that are not there report 0.0."""
    return celsius if celsius is not None and celsius != 0.0 and COLDEST_C <= celsius <= HOTTEST_C else None
