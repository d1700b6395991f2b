"""A phone's condition as it was told last: battery and heat, each fact with the moment it was told. Values only.

None always means "not told": what is unknown restricts nobody. A reading holds what one source said at one moment;
`renewed` keeps each fact that a newer one left out, with its own age, so that two sources (adb, and the reporter on the
phone) never take turns in forgetting. Where both tell a fact the newer word counts: both ask the same Android.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SEVERE, CRITICAL = 3, 4
# PowerManager's scale, which the NDK's AThermal shares; the index is the status.
THERMAL_WORDS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
FACTS = ("level", "charging", "temperature_c", "thermal_status", "overheated")


@dataclass(frozen=True, slots=True)
class Condition:
    """Moments are wall clock seconds, of the gateway, when it heard: phones' clocks are not to be trusted."""

    level: float | None = None  # percent, 0 to 100
    charging: bool | None = None  # or held at its level by a charger; a charger too weak for the load is none
    temperature_c: float | None = None  # of the battery
    thermal_status: int | None = None  # 0 to 6, see THERMAL_WORDS
    at: float = 0.0  # when the newest of it was told
    overheated: bool | None = None  # Android's own verdict on the battery
    earlier: Mapping[str, float] = field(default_factory=dict, hash=False)  # when the older facts were, by name

    @property
    def tells_anything(self) -> bool:
        return any(getattr(self, name) is not None for name in FACTS)

    @property
    def thermal_word(self) -> str | None:
        return None if self.thermal_status is None else THERMAL_WORDS[self.thermal_status]

    def believed(self, now: float, stale_seconds: float) -> Condition:
        """What is left of it once too old words are forgotten. A clock that was set back makes none younger."""
        old: dict[str, Any] = {
            name: None
            for name in FACTS
            if getattr(self, name) is not None and not abs(now - self.earlier.get(name, self.at)) <= stale_seconds
        }
        return replace(self, **old) if old else self


def renewed(known: Condition | None, told: Condition) -> Condition:
    """The condition after another reading: each fact as it was told last."""
    if known is None:
        return told
    kept = {name: getattr(known, name) for name in FACTS if getattr(told, name) is None}
    kept = {name: value for name, value in kept.items() if value is not None}
    moments = {name: known.earlier.get(name, known.at) for name in kept}
    earlier = {name: moment for name, moment in moments.items() if moment != told.at}
    return replace(told, **kept, earlier=earlier) if kept else told
