"""A phone's condition as it was told last: battery and heat, each with the moment it was told. Values only.

None always means "not told": what is unknown restricts nobody. A reading holds what one source said at one moment;
`renewed` keeps what a newer one left out, with its own age, so that two sources never take turns in forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SEVERE, CRITICAL = 3, 4
# PowerManager's scale, which the NDK's AThermal shares; the index is the status.
THERMAL_WORDS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True, slots=True)
class Condition:
    """Moments are wall clock seconds, of the gateway, when it heard: phones' clocks are not to be trusted."""

    level: float | None = None  # percent, 0 to 100
    charging: bool | None = None  # or held at its level by a charger; a charger too weak for the load is none
    temperature_c: float | None = None  # of the battery
    thermal_status: int | None = None  # 0 to 6, see THERMAL_WORDS
    at: float = 0.0  # when the battery was told
    overheated: bool = False  # Android's own verdict on the battery
    thermal_at: float | None = None  # when the thermal status was told; None: with the battery

    @property
    def tells_battery(self) -> bool:
        return self.overheated or (self.level, self.charging, self.temperature_c) != (None, None, None)

    @property
    def tells_anything(self) -> bool:
        return self.tells_battery or self.thermal_status is not None

    @property
    def thermal_word(self) -> str | None:
        return None if self.thermal_status is None else THERMAL_WORDS[self.thermal_status]

    @property
    def heard_at(self) -> float:
        """The newest word of it."""
        return self.at if self.thermal_at is None else max(self.at, self.thermal_at)

    def believed(self, now: float, stale_seconds: float) -> Condition:
        """What is left of it once too old words are forgotten."""
        thermal_at = self.at if self.thermal_at is None else self.thermal_at
        status = self.thermal_status if now - thermal_at <= stale_seconds else None
        if now - self.at > stale_seconds:
            return Condition(thermal_status=status, at=self.at, thermal_at=thermal_at)
        return self if status == self.thermal_status else replace(self, thermal_status=status)


def renewed(known: Condition | None, told: Condition) -> Condition:
    """The condition after another reading: the battery is told as a whole, the thermal status by itself."""
    if known is None:
        return told
    battery = told if told.tells_battery else known
    thermal = told if told.thermal_status is not None else known
    thermal_at = thermal.at if thermal.thermal_at is None else thermal.thermal_at
    return replace(battery, thermal_status=thermal.thermal_status, thermal_at=thermal_at)
