"""How fast a node writes now: tokens over seconds of the answers within a moving window. Pure; `now` is an argument.

A phone that was quick in its first minute may be half as quick in its thirtieth, and quick again an hour later. So the
window is one of time: what is older counts no more as soon as there is something newer, and long answers count for more
than short ones. The last answer is kept as the best that is known, but not for ever: a phone that was slow when it was
hot has long cooled down, and where only the quick are asked nobody would find out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 300.0  # phones heat up and cool down over minutes
FORGOTTEN_SECONDS = 1800.0  # without an answer; a phone is as cool as its room by then
MOST_ANSWERS = 64  # of a node with many slots: what has just been is enough


@dataclass(slots=True)
class Pace:
    """The answers of the window: when each ended, its tokens, the seconds of their writing.

    Three plain rows, since each answer sums them up: of numbers alone that takes a third of the time.
    """

    ends: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))

    def learn(self, tokens: int, seconds: float, now: float) -> float:
        """One more answer; the tokens per second of the window, it included. `seconds` is more than 0."""
        ends = self.ends
        ends.append(now)
        self.tokens.append(tokens)
        self.seconds.append(seconds)
        while ends[0] < now - WINDOW_SECONDS:
            ends.popleft()
            self.tokens.popleft()
            self.seconds.popleft()
        return sum(self.tokens) / sum(self.seconds)

    def is_forgotten(self, now: float) -> bool:
        """Was the last answer so long ago that it says nothing of the next one? Not where there was none."""
        return bool(self.ends) and now - self.ends[-1] >= FORGOTTEN_SECONDS
