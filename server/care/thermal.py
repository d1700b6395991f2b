"""What Android says of heat -> `Condition`: `dumpsys thermalservice` (Android 10 and later), and what a phone reports.

Never raises. Of a dump only the status is used: it is Android's own verdict, on the scale that every vendor must map
to, while names, numbers and thresholds of single sensors differ by model. Where the line is missing it is found as
Android finds it: the worst status of a skin sensor. Of a report's zones (sysfs) only a battery's is one to compare with
the owner's marks: a processor at 90 degrees is at work and well. Formats: AOSP ThermalManagerService, Linux sysfs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from server.care.battery import MOST_TEXT
from server.care.condition import THERMAL_WORDS, Condition
from server.care.units import celsius, number

_STATUS = re.compile(r"^[ \t]*Thermal Status: ?(-?\d{1,4})[ \t]*$", re.MULTILINE)
_OVERRIDE = re.compile(r"^[ \t]*IsStatusOverride: ?true[ \t]*$", re.MULTILINE)
_NOT_READY = re.compile(r"^[ \t]*HAL Ready: ?false[ \t]*$", re.MULTILINE)
_CURRENT = re.compile(r"^[ \t]*Current temperatures from HAL:[ \t]*$", re.MULTILINE)
_SENSOR = re.compile(r"Temperature\{([^{}\n]{0,300})\}")
_TYPE, _SEVERITY = re.compile(r"\bmType=(-?\d{1,4})\b"), re.compile(r"\bmStatus=(\d{1,4})\b")
SKIN = 3  # Temperature.TYPE_SKIN, the only type that Android's status follows
MOST_ZONES = 256  # a phone has up to a hundred
# A battery's figures that are no temperature and still stand among the zones of some phones.
_NO_WARMTH = re.compile(r"cycle|soc|level|lvl|volt|curr|capacity|percent|power|[_-]id$")
MILLI_FROM = 1000.0  # zones are in thousandths of a degree; old kernels' in tenths or whole ones


def parse_dumpsys_thermal(text: str, at: float) -> Condition:
    """The condition that `dumpsys thermalservice` tells; `at`: when, wall clock seconds.

    Without the vendor's half (`HAL Ready: false`) a status of 0 is nobody's word; what a person has overridden is.
    """
    text = text[:MOST_TEXT].replace("\r", "")
    found = _STATUS.search(text)
    status = _on_scale(int(found[1])) if found else _worst(text)
    if status == 0 and _NOT_READY.search(text) and not _OVERRIDE.search(text):
        status = None
    return Condition(thermal_status=status, at=at)


def parse_thermal_report(said: object, at: float) -> Condition:
    """The condition in a phone's report: `{"status": 0 to 6 or its word, "zones": {type: thousandths of a degree}}`."""
    if not isinstance(said, Mapping):
        return Condition(at=at)
    status = said.get("status")
    if isinstance(status, str) and status.lower() in THERMAL_WORDS:
        status = THERMAL_WORDS.index(status.lower())
    degrees = max(_battery_zones(said.get("zones")), default=None)
    return Condition(temperature_c=degrees, thermal_status=_on_scale(status), at=at)


def _on_scale(status: object) -> int | None:
    return status if type(status) is int and 0 <= status < len(THERMAL_WORDS) else None


def _worst(text: str) -> int | None:
    """Of the sensors listed now, where the vendor's half lists any; else of those heard of last."""
    current = _CURRENT.search(text)
    listed = list(_sensors(text[current.end() :])) if current else []
    sensors = listed or list(_sensors(text))
    of_skin = [status for kind, status in sensors if kind == SKIN]
    return max(of_skin or [status for _, status in sensors], default=None)


def _sensors(text: str) -> Iterator[tuple[int | None, int]]:
    """Type and status of each, where the status is on the scale."""
    for sensor in _SENSOR.finditer(text):
        kind, severity = _TYPE.search(sensor[1]), _SEVERITY.search(sensor[1])
        status = _on_scale(int(severity[1])) if severity else None
        if status is not None:
            yield int(kind[1]) if kind else None, status


def _battery_zones(zones: Any) -> Iterator[float]:
    if not isinstance(zones, Mapping):
        return
    for name, value in islice(zones.items(), MOST_ZONES):
        if isinstance(name, str) and _is_warmth(name.lower()):
            told = number(value)
            parts = (1000.0,) if told is None or abs(told) >= MILLI_FROM else (1.0, 10.0)
            degrees = celsius(told, *parts)
            if degrees is not None:
                yield degrees


def _is_warmth(zone: str) -> bool:
    return zone == "bms" or ("batt" in zone and not _NO_WARMTH.search(zone))
