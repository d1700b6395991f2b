"""One step in the making: which sequences have a share, how large, and what comes of it.

Invariants: the shares together never exceed the budget; decodes come before prompts; a sequence has one share. Must not
know who is preempted or admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu_node.engine.planned import Planned, PlannedPick, PlannedRead
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.speculation import Proposal
from gpu_node.engine.step import BlockCopy, Row, Step


@dataclass(slots=True)
class Share:
    state: SequenceState
    start: int  # behind all that is computed or under way
    tokens: int  # certain ones
    decode: bool
    forks: int = 0  # samples that get their first token with it

    @property
    def end(self) -> int:
        return self.start + self.tokens

    @property
    def last(self) -> bool:
        return self.end == len(self.state.tokens)


@dataclass(slots=True)
class StepBuilder:
    turn: int
    budget: int
    block_tokens: int
    shares: list[Share] = field(default_factory=list)
    used: int = 0

    @property
    def left(self) -> int:
        return self.budget - self.used

    def add(self, state: SequenceState, tokens: int, decode: bool = False) -> Share:
        assert 0 < tokens <= self.left and state.turn != self.turn
        share = Share(state, state.computed + state.planned, tokens, decode)
        state.turn = self.turn
        state.planned += tokens
        self.shares.append(share)
        self.used += tokens
        return share

    def extend(self, share: Share, tokens: int) -> None:
        assert 0 < tokens <= self.left
        share.tokens += tokens
        share.state.planned += tokens
        self.used += tokens

    def draft(self, share: Share, proposal: Proposal, price: float) -> None:
        assert len(proposal.drafts) <= self.left and share.last
        share.state.drafted = proposal
        share.state.price = price
        self.used += len(proposal.drafts)

    def build(self, now: float) -> Planned:
        copies: list[BlockCopy] = []
        rows: list[Row] = []
        picks: list[PlannedPick] = []
        reads: list[PlannedRead] = []
        for index, share in enumerate(self.shares):
            state = share.state
            rows.append(self._row(share))
            if state.copy is not None:
                # Ordered twice it would undo what was written since; but only forks copy, and their first row is alone.
                assert state.planned == share.tokens
                copies.append(state.copy)
            if not state.sampled:
                # A piece of which everything was told before, or of whose end alone something is wanted, gives nothing.
                if rows[-1].output_tokens:
                    reads.append(PlannedRead(index, state.id, share.last))
            elif share.last:
                picks.append(PlannedPick(index, state.id, state.drafted.drafts))
                state.picked = self.turn
                for sample in state.samples[: share.forks]:
                    picks.append(PlannedPick(index, sample.id))
                    sample.picked = self.turn
        decodes = sum(share.decode for share in self.shares)
        prompt_tokens = sum(share.tokens for share in self.shares if not share.decode)
        lives = tuple([share.state.life for share in self.shares])
        step = Step(tuple(rows), tuple(copies))
        return Planned(step, tuple(picks), tuple(reads), now, decodes, prompt_tokens, self.turn, lives)

    def _row(self, share: Share) -> Row:
        state, start, end = share.state, share.start, share.end
        tokens = (*state.tokens[start:end], *state.drafted.drafts)
        blocks = tuple(state.blocks[: -(-(start + len(tokens)) // self.block_tokens)])
        wanted = state.submission.output
        if wanted == "sample" or state.submission.last_only:
            count = 1 + len(state.drafted.drafts) if share.last else 0
        else:
            count = max(0, end - max(state.told, start))  # rows under way tell what lies before
        given = state.submission.vectors
        vectors = None if given is None else given[start:end]
        if not count:
            return Row(state.id, tokens, start, blocks, vectors=vectors)
        return Row(state.id, tokens, start, blocks, "hidden" if wanted == "hidden" else "logits", count, vectors)
