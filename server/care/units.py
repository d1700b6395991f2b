"""Numbers of other people's making: finite or none, and degrees whose unit shows in their size. Pure; never raises."""

from __future__ import annotations

import math
import re

_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d{1,2})")  # three figures behind it would be thousands

MOST_DIGITS = 12
# Beyond, it is no battery's but another unit, or a sensor's excuse: phones switch themselves off at 60 to 70 degrees.
COLDEST_C, HOTTEST_C = -40.0, 90.0
LEAST_GUESSED_C = 15.0  # a unit that is only guessed at must give what a phone at work has


def number(value: object) -> float | None:
    """A finite number, from text too, as written in whichever country; None for all else."""
    if isinstance(value, str) and 0 < len(value) <= MOST_DIGITS:
        comma = _DECIMAL_COMMA.fullmatch(value.strip())
        try:
            value = float(f"{comma[1]}.{comma[2]}" if comma else value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        return None
    return float(value) if math.isfinite(value) else None


def celsius(value: float | None, documented: float, *others: float) -> float | None:
    """Degrees from `value`, which has `documented` parts to a degree, or as many as the first of `others` that fits.

    None where none does, and for 0: sensors that are not there report that.
    """
    if value is None or value == 0.0:
        return None
    degrees = value / documented
    if COLDEST_C <= degrees <= HOTTEST_C:
        return degrees
    guesses = (value / parts for parts in others)
    return next((guess for guess in guesses if LEAST_GUESSED_C <= guess <= HOTTEST_C), None)
