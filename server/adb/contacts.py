"""Which connections break off again and again: a worn cable, a loose plug, a hub at its limit. Pure; `now` is told.

Such a phone takes requests each time it is back and drops them in the middle, and forgets meanwhile that it failed. So
it waits until its connection has held for a while. Knows connections by adb's serial, and nothing of phones.
"""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 60.0
MOST_BREAKS = 5  # within the window; a person who tries ports and cables stays below
STEADY_SECONDS = 15.0  # without a break, until it is trusted again
BOUNCE_SECONDS = 1.0  # breaks in quick succession are one: a plug that makes contact


class Contacts:
    """`broke` tells of a break; `is_loose` whether to wait."""

    def __init__(self, steady_seconds: float = STEADY_SECONDS) -> None:
        self.steady_seconds = steady_seconds
        self.breaks: dict[str, deque[float]] = {}  # when, the latest of each

    def broke(self, serial: str, now: float) -> None:
        self.breaks = {each: breaks for each, breaks in self.breaks.items() if now - breaks[-1] < WINDOW_SECONDS}
        breaks = self.breaks.setdefault(serial, deque(maxlen=MOST_BREAKS))
        if not breaks or now - breaks[-1] >= BOUNCE_SECONDS:
            breaks.append(now)

    def is_loose(self, serial: str, now: float) -> bool:
        """Did it break off so often, and just now for the last time?"""
        breaks = self.breaks.get(serial, deque())
        return (
            len(breaks) == MOST_BREAKS and now - breaks[0] < WINDOW_SECONDS and now - breaks[-1] < self.steady_seconds
        )
