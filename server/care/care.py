"""What a condition means for the work a phone gets: all of it, less, or a rest, with hysteresis. Pure.

A rest begins at one mark and ends at another, lower one, or a phone at the mark would come and go with every reading.
Words that are too old count as unknown, and what is unknown restricts nobody: a reporter that died must not cost a
phone. Knows no node; `before` is what was decided last.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.care.condition import CRITICAL, SEVERE, THERMAL_WORDS, Condition

LEAST_FACTOR = 0.2  # of the work, just below a rest: enough to notice that it is quick again
FACTOR_STEPS = 20  # few distinct weights: the rotation keeps a heap for each
STATUS_FACTORS = (1.0, 0.75, 0.4)  # none, light, moderate; Android itself slows the phone from moderate on
STATUS_STRAIN = (0.0, 0.3, 0.6, 1.0, 2.0, 3.0, 4.0)
COOL_STATUS = 1  # a rest for heat ends at light
SPENT_ABOVE_C = 6.0  # beyond the hot mark: charging has stopped by then, cells age fast, Android is about to intervene
SPENT_LEVEL = 3.0  # percent; it is about to switch itself off


@dataclass(frozen=True, slots=True)
class CareLimits:
    """The owner's marks. Degrees are those of the battery, levels are percent."""

    enabled: bool = True
    warm_c: float = 37.0
    hot_c: float = 43.0
    cooled_c: float = 39.0
    low_level: float = 15.0
    charged_level: float = 30.0
    stale_seconds: float = 180.0


@dataclass(frozen=True, slots=True)
class Care:
    """`factor` of its share while it works; `resting`: why it gets nothing, in words, None while it works.

    `strain` compares those that rest: when all do, the least strained one serves, unless it is `spent`. `since`: when
    the rest began, wall clock seconds; 0 while it works.
    """

    factor: float = 1.0
    resting: str | None = None
    hot: bool = False
    low: bool = False
    strain: float = 0.0
    spent: bool = False
    since: float = 0.0


UNTROUBLED = Care()


def decide(condition: Condition | None, before: Care, limits: CareLimits, now: float) -> Care:
    """The care for a phone in this condition. `now`: wall clock seconds."""
    if condition is None or not limits.enabled:
        return UNTROUBLED
    known = condition.believed(now, limits.stale_seconds)
    hot = _is_hot(known, limits) or (before.hot and not _has_cooled(known, limits))
    low = _is_low(known, limits) or (before.low and not _has_charged(known, limits))
    if not hot and not low:
        factor = _factor(known, limits)
        return UNTROUBLED if factor == 1.0 else Care(factor)
    reasons = [*([_why_hot(known, limits)] if hot else []), *([_why_low(known, limits)] if low else [])]
    since = before.since if before.resting else now
    return Care(0.0, "; ".join(reasons), hot, low, _strain(known, limits), _is_spent(known, limits), since)


def _is_hot(known: Condition, limits: CareLimits) -> bool:
    temperature, status = known.temperature_c, known.thermal_status
    too_warm = temperature is not None and temperature >= limits.hot_c
    return too_warm or (status is not None and status >= SEVERE) or known.overheated is True


def _has_cooled(known: Condition, limits: CareLimits) -> bool:
    temperature, status = known.temperature_c, known.thermal_status
    cool = temperature is None or temperature <= limits.cooled_c
    return cool and (status is None or status <= COOL_STATUS) and not known.overheated


def _is_low(known: Condition, limits: CareLimits) -> bool:
    """Low and losing; or nearly empty, for many a charger brings less than this work takes."""
    if known.level is None or known.level > limits.low_level:
        return False
    return not known.charging or 0.0 < known.level <= SPENT_LEVEL


def _has_charged(known: Condition, limits: CareLimits) -> bool:
    return known.level is None or known.level >= limits.charged_level


def _is_spent(known: Condition, limits: CareLimits) -> bool:
    """Work now would make Android stop everything, or the phone switch itself off."""
    temperature, level = known.temperature_c, known.level
    burning = temperature is not None and temperature >= limits.hot_c + SPENT_ABOVE_C
    empty = level is not None and level <= SPENT_LEVEL and not known.charging
    return burning or empty or known.overheated is True or (known.thermal_status or 0) >= CRITICAL


def _factor(known: Condition, limits: CareLimits) -> float:
    """Falls in a straight line from the warm mark to the hot one; the thermal status may lower it further."""
    factor = STATUS_FACTORS[min(known.thermal_status or 0, len(STATUS_FACTORS) - 1)]
    if known.temperature_c is not None and known.temperature_c > limits.warm_c:
        left = (limits.hot_c - known.temperature_c) / (limits.hot_c - limits.warm_c)
        factor = min(factor, LEAST_FACTOR + (1.0 - LEAST_FACTOR) * left)
    return round(factor * FACTOR_STEPS) / FACTOR_STEPS


def _strain(known: Condition, limits: CareLimits) -> float:
    """0: as good as recovered, 1: at the mark of a rest, more beyond."""
    strains = [STATUS_STRAIN[known.thermal_status or 0]]
    if known.temperature_c is not None:
        strains.append((known.temperature_c - limits.cooled_c) / (limits.hot_c - limits.cooled_c))
    if known.level is not None and not known.charging:
        strains.append((limits.charged_level - known.level) / max(1.0, limits.charged_level - limits.low_level))
    return max(strains)


def _why_hot(known: Condition, limits: CareLimits) -> str:
    words = []
    if known.temperature_c is not None and known.temperature_c > limits.cooled_c:
        words.append(f"{known.temperature_c:.1f} °C, rests until {limits.cooled_c:g} °C")
    if known.thermal_status is not None and known.thermal_status > COOL_STATUS:
        words.append(f"thermal status {known.thermal_word}, rests until {THERMAL_WORDS[COOL_STATUS]}")
    if known.overheated:
        words.append("the battery reports overheating")
    return "hot: " + ", ".join(words)


def _why_low(known: Condition, limits: CareLimits) -> str:
    level = 0.0 if known.level is None else known.level
    charging = "charging" if known.charging else "not charging"
    return f"low battery: {level:.0f} %, {charging}, rests until {limits.charged_level:g} %"
