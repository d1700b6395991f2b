"""How fast a node writes now: tokens over seconds of the answers within a moving window. Pure; `now` is an argument.

A phone that was quick in its first minute may be half as quick in its thirtieth, and quick again an hour later. So the
window is one of time: what is older counts no more as soon as there is something newer, and long answers count for more
than short ones. The last answer is kept as the best that is known, but not for ever: a phone that was slow when it was
hot has long cooled down, and where only the quick are asked nobody would find out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_SECONDS = 300.0  # phones heat up and cool down over minutes
FORGOTTEN_SECONDS = 1800.0  # without an answer; a phone is as cool as its room by then
MOST_ANSWERS = 64  # of a node with many slots: what has just been is enough
LONGEST_SECONDS = 1e9  # of one answer; beyond, the node's clock is wrong
SECOND = 10**9


@dataclass(slots=True)
class Pace:
    """The answers of the window: when each ended, its tokens, the nanoseconds of their writing; and the sums of both.

    Whole numbers, so that what goes leaves no trace in the sums. A list, since few nodes see more than some answers
    within a window, and an empty one takes a tenth of a deque's memory.
    """

    answers: list[tuple[float, int, int]] = field(default_factory=list)
    tokens: int = 0
    nanoseconds: int = 0

    def learn(self, tokens: int, seconds: float, now: float) -> float:
        """One more answer; the tokens per second of the window, it included. `seconds` is more than 0."""
        answers, took = self.answers, max(1, round(min(seconds, LONGEST_SECONDS) * SECOND))
        answers.append((now, tokens, took))
        self.tokens += tokens
        self.nanoseconds += took
        while answers[0][0] < now - WINDOW_SECONDS or len(answers) > MOST_ANSWERS:
            _, fewer, less = answers.pop(0)
            self.tokens -= fewer
            self.nanoseconds -= less
        return self.tokens * SECOND / self.nanoseconds

    def is_forgotten(self, now: float) -> bool:
        """Was the last answer so long ago that it says nothing of the next one? Not where there was none."""
        return bool(self.answers) and now - self.answers[-1][0] >= FORGOTTEN_SECONDS
