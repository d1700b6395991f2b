"""A device that is stated to be slower than this machine: after its work it rests, so that it takes as long as it says.

Invariant: a rest ends at once when there is nothing to rest for any more. Must not know what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress


def rest_seconds(speed: float, worked_seconds: float) -> float:
    """`speed` of 1, the full one: half of it takes twice as long, work and rest together."""
    if not 0 < speed <= 1:
        raise ValueError(f"a speed is more than 0 and at most 1, not {speed}")
    return worked_seconds / speed - worked_seconds


class Pace:
    def __init__(
        self, speed: float, wait: Callable[[float], object], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`wait` lets so many seconds pass, or less: `Event.wait` of what ends the work."""
        rest_seconds(speed, 0)
        self._speed, self._wait, self._clock = speed, wait, clock
        self._began = clock()

    def begin(self) -> None:
        self._began = self._clock()

    def end(self) -> float:
        """Rests; how long work and rest took together."""
        rest = rest_seconds(self._speed, self._clock() - self._began)
        if rest > 0:
            with suppress(OverflowError):  # longer than any clock goes
                self._wait(rest)
        return self._clock() - self._began
