"""How large a step may be after the device ran out of memory, and when it may grow again. Pure.

Every failure halves the tokens of a step; a long run of good steps doubles them, until nothing is limited any more.
Must not know the scheduler or the device.
"""

from __future__ import annotations

# Long enough that a device which is full for good costs little, short enough that a moment's shortage passes.
GOOD_STEPS = 256


class StepRoom:
    def __init__(self, largest: int) -> None:
        """`largest`: tokens of the largest step there would be without any limit."""
        self._largest = largest
        self._good = 0
        self.cap: int | None = None  # tokens of a step; None: no limit

    def narrow(self, tokens: int) -> bool:
        """After a step of that size did not fit. False when no smaller one is possible."""
        self._good = 0
        self.cap = max(tokens // 2, 1)
        return tokens > 1

    def widen(self) -> bool:
        """After a step that did fit. True when the cap has changed."""
        self._good += 1
        if self.cap is None or self._good < GOOD_STEPS:
            return False
        self._good = 0
        self.cap = None if self.cap * 2 >= self._largest else self.cap * 2
        return True
