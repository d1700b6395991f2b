"""When a runner that lends blocks is asked for some: asking empties the pipeline, so it must be worth it.

Invariants: never more often than `PAUSE_SECONDS`; ever less often while nothing comes of it and the shortage does not
grow. Pure: time is an argument. Must not know who lends, nor what a block is.
"""

from __future__ import annotations

# About a step of a small model: sooner nothing can have changed.
PAUSE_SECONDS = 0.05
# Memory that others need for longer will not come back within a step; two seconds are still soon for who waits.
LONGEST_PAUSE_SECONDS = 2.0


class ShortageCalls:
    def __init__(self) -> None:
        self._again_at = float("-inf")
        self._pause = PAUSE_SECONDS
        self._asked = 0  # the shortage that was asked for last and not met
        self._pressing_at = float("-inf")
        self._urgent = False  # what was asked for last

    def due(self, now: float) -> bool:
        """Even whether there is a shortage is asked no more often."""
        return now >= self._again_at

    def worth(self, shortage: int, now: float, urgent: bool = False) -> bool:
        """What becomes urgent is asked for at once."""
        self._again_at = now + PAUSE_SECONDS
        if not shortage:
            self._asked, self._pause, self._pressing_at, self._urgent = 0, PAUSE_SECONDS, float("-inf"), False
            return False
        if shortage <= self._asked and now < self._pressing_at and self._urgent >= urgent:
            return False
        self._asked, self._urgent = shortage, urgent
        return True

    def answered(self, something_came: bool, now: float) -> None:
        """Also when the runner was tended for reasons of its own."""
        self._pause = PAUSE_SECONDS if something_came else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._again_at, self._pressing_at = now + PAUSE_SECONDS, now + self._pause
