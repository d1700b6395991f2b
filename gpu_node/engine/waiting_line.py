"""Who waits to run: callers take equal turns, and within one caller higher priority goes first, then who came first.

Who has had its turn and comes back (preempted, or held for a prefix) goes before all others, the most senior first, so
that nobody new takes its blocks. Must not know blocks, tokens or time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field

from gpu_node.engine.sequence_state import SequenceState

Line = list[SequenceState]


def _seniority(state: SequenceState) -> tuple[int, int, int]:
    return state.seniority


@dataclass(slots=True)
class WaitingLine:
    returned: Line = field(default_factory=list)
    lines: OrderedDict[str, Line] = field(default_factory=OrderedDict)  # by caller; the first one's turn is next
    fresh: int = 0  # in `lines`

    def __len__(self) -> int:
        return len(self.returned) + self.fresh

    def enter(self, state: SequenceState) -> None:
        """A caller who was not waiting comes in behind all others."""
        insort(self.lines.setdefault(state.submission.caller, []), state, key=_seniority)
        self.fresh += 1

    def restore(self, state: SequenceState) -> None:
        insort(self.returned, state, key=_seniority)

    def peek(self) -> SequenceState | None:
        """Who is next; stays in line."""
        if self.returned:
            return self.returned[0]
        return next(iter(self.lines.values()))[0] if self.lines else None

    def take(self) -> SequenceState:
        """Who is next leaves the line; its caller goes behind all others."""
        if self.returned:
            return self.returned.pop(0)
        caller, line = self.lines.popitem(last=False)
        state = line.pop(0)
        self.fresh -= 1
        if line:
            self.lines[caller] = line
        return state

    def leave(self, state: SequenceState) -> bool:
        """It gave up. False when it was not here."""
        if _remove(self.returned, state):
            return True
        line = self.lines.get(state.submission.caller)
        if line is None or not _remove(line, state):
            return False
        self.fresh -= 1
        if not line:
            del self.lines[state.submission.caller]
        return True


def _remove(line: Line, state: SequenceState) -> bool:
    place = bisect_left(line, state.seniority, key=_seniority)
    if place == len(line) or line[place] is not state:
        return False
    del line[place]
    return True
