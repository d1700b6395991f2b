"""Drafts from the text itself: what followed the last time the same few tokens were written, and whether to bet on it.

Prompt lookup decoding (Saxena 2023) with a growing index instead of a search. Drafts are only guesses, the model judges
each; so nothing here can change an answer, only its speed. Must not know blocks, steps or the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SIZES = (4, 2)  # tokens that must be alike, longest first; a pair is the least that says anything
INDEXED_TOKENS = 16_384  # of a prompt, its last: an index takes some 300 bytes a token
GROWTH = 512  # of them in one go: half a millisecond at most, while others wait for their next token
MEMORY = 0.9  # of earlier verdicts, at each new one: some ten verdicts count
PRIOR_JUDGED = 2.0  # the first verdicts weigh against an even chance, so that one miss does not stop a good run
MIN_PAUSE = 8  # tokens without drafts after they stopped paying, doubled each time up to the longest
MAX_PAUSE = 512
PROBE = 2  # drafts when the pause is over
MARGIN = 2.0  # times its price must a draft bring: with less, eight answers at once were slower than without drafts


@dataclass(frozen=True, slots=True)
class Proposal:
    drafts: tuple[int, ...]
    size: int  # index into SIZES: how long a match stands behind them


NOTHING = Proposal((), 0)


def propose(tokens: Sequence[int], limit: int) -> Proposal:
    """The slow reference of `NgramIndex.propose`: searches the whole text."""
    for size, length in enumerate(SIZES):
        tail = tuple(tokens[-length:])
        for end in range(len(tokens) - 1, length - 1, -1):
            if tuple(tokens[end - length : end]) == tail:
                return Proposal(_continuation(tokens, end, limit), size)
    return NOTHING


def _continuation(tokens: Sequence[int], start: int, limit: int) -> tuple[int, ...]:
    """What stands from `start` on; a text that ends before `limit` repeats itself from there."""
    drafts = list(tokens[start : start + limit])
    period = len(tokens) - start
    while len(drafts) < limit:
        drafts.append(drafts[len(drafts) - period])
    return tuple(drafts)


@dataclass(slots=True)
class NgramIndex:
    """Where each short run of tokens was last followed by something, for one text that only grows."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0  # runs that end here or earlier are known

    def propose(self, tokens: Sequence[int], limit: int) -> Proposal:
        """Up to `limit` tokens that may come next. Costs the tokens written since the last call; a long prompt is
        indexed over several calls."""
        self._grow(tokens)
        for size, length in enumerate(SIZES):
            end = self.ends.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if end is not None:
                return Proposal(_continuation(tokens, end, limit), size)
        return NOTHING

    def _grow(self, tokens: Sequence[int]) -> None:
        first = max(self.indexed + 1, len(tokens) - INDEXED_TOKENS)
        stop = min(len(tokens), first + GROWTH)
        for length in SIZES:
            for end in range(max(first, length), stop):
                self.ends[tuple(tokens[end - length : end])] = end
        self.indexed = max(self.indexed, stop - 1)


@dataclass(frozen=True, slots=True)
class DraftRecord:
    """How drafts of one kind have fared in one sequence, and until when they are left alone."""

    accepted: float = PRIOR_JUDGED / 2
    judged: float = PRIOR_JUDGED
    pause: int = 0  # tokens
    resumes_at: int = 0  # written tokens

    @property
    def acceptance(self) -> float:
        """The chance that the next draft is right, given that those before it were."""
        return self.accepted / self.judged

    def length(self, price: float, limit: int, written: int) -> int:
        """How many drafts pay, when each makes the step dearer by what `price` tokens cost.

        The j-th is right with acceptance ** j; it pays while that is more than `MARGIN` times its price.
        """
        if written < self.resumes_at or limit < 1:
            return 0
        price *= MARGIN
        if price >= 1.0:
            return 0
        if self.pause:
            return min(PROBE, limit)
        return min(limit, _paying(self.acceptance, price))

    def after(self, drafted: int, accepted: int, price: float, written: int) -> DraftRecord:
        """`drafted` were judged until the first wrong one; `written` tokens stand there now."""
        verdicts = min(drafted, accepted + 1)
        kept = MEMORY**verdicts
        right = self.accepted * kept + accepted
        judged = self.judged * kept + verdicts
        if _paying(right / judged, price * MARGIN):
            return DraftRecord(right, judged)
        pause = min(MAX_PAUSE, max(MIN_PAUSE, 2 * self.pause))
        return DraftRecord(right, judged, pause, written + pause)


def _paying(acceptance: float, price: float) -> int:
    if acceptance <= price or acceptance <= 0.0:
        return 0
    if acceptance >= 1.0 or price <= 0.0:
        return 1 << 16  # the caller's limit decides
    return max(1, int(math.log(price) / math.log(acceptance)))


@dataclass(slots=True)
class Drafting:
    """One sequence's index and records. `written` counts all its tokens and only grows."""

    index: NgramIndex = field(default_factory=NgramIndex)
    records: list[DraftRecord] = field(default_factory=lambda: [DraftRecord() for _ in SIZES])

    def propose(self, tokens: Sequence[int], price: float, limit: int) -> Proposal:
        lengths = [record.length(price, limit, len(tokens)) for record in self.records]
        if not any(lengths):
            return NOTHING
        found = self.index.propose(tokens, max(lengths))
        return Proposal(found.drafts[: lengths[found.size]], found.size)

    def judge(self, proposal: Proposal, accepted: int, price: float, written: int) -> None:
        record = self.records[proposal.size]
        self.records[proposal.size] = record.after(len(proposal.drafts), accepted, price, written)
