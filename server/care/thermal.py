"""What `dumpsys thermalservice` says (Android 10 and later) -> `Condition`. Never raises.

Only the status is used: it is Android's own verdict, on the scale that every vendor must map to, while names, numbers
and thresholds of single sensors differ by model. Where the line is missing, the worst status of a listed sensor counts.
"""

from __future__ import annotations

import re

from server.care.battery import MOST_TEXT
from server.care.condition import THERMAL_WORDS, Condition

_STATUS = re.compile(r"^[ \t]*Thermal Status: ?(-?\d{1,4})[ \t]*$", re.MULTILINE)
_OVERRIDE = re.compile(r"^[ \t]*IsStatusOverride: ?true[ \t]*$", re.MULTILINE)
_NOT_READY = re.compile(r"^[ \t]*HAL Ready: ?false[ \t]*$", re.MULTILINE)
_SENSOR = re.compile(r"Temperature\{[^{}\n]{0,200}?\bmStatus=(\d{1,4})\b")


def parse_dumpsys_thermal(text: str, at: float) -> Condition:
    """The condition that `dumpsys thermalservice` tells; `at`: when, wall clock seconds.

    Without the vendor's half (`HAL Ready: false`) a status of 0 is nobody's word; what a person has overridden is.
    """
    text = text[:MOST_TEXT]
    found = _STATUS.search(text)
    statuses = [int(found[1])] if found else [int(status) for status in _SENSOR.findall(text)]
    known = [status for status in statuses if 0 <= status < len(THERMAL_WORDS)]
    status = max(known, default=None)
    if status == 0 and _NOT_READY.search(text) and not _OVERRIDE.search(text):
        status = None
    return Condition(thermal_status=status, at=at)
