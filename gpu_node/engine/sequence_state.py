"""What the scheduler knows of one sequence.

Invariants: `tokens[:computed]` are those whose keys and values lie in `blocks`, and at least one more is there to be
computed unless the sequence is over; `planned` more are under way in one row or several, which end in their order;
`blocks[:published]` are in the prefix cache; a waiting sequence holds no block.
Must not know the pool or other sequences, but for the samples that will fork from it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpu_node.engine.block_chain import BlockChain
from gpu_node.engine.planned import Submission
from gpu_node.engine.speculation import NOTHING, Drafting, Proposal
from gpu_node.engine.step import BlockCopy

ENOUGH_PREEMPTIONS = 3  # then priority counts no more: a stream of urgent requests must not starve anybody


@dataclass(slots=True, eq=False)
class SequenceState:
    id: int  # grows with every submission, so it is the age too
    submission: Submission
    tokens: list[int]
    max_context: int
    chain: BlockChain
    speculates: bool
    samples: list[SequenceState] = field(default_factory=list)  # fork from this one when its prompt is read
    parent: SequenceState | None = None  # whose sample it is, until it forks
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    published: int = 0  # blocks
    told: int = 0  # tokens whose logits or hidden states were given out
    running: bool = False
    answering: bool = False  # all its tokens were computed once, so that another one is a decode
    gone: bool = False
    awaits: bytes | None = None  # digest of the promised block it is held for
    admitted: int = 0  # the how manieth admission
    preempted: int = 0  # times
    promised: int = 0  # blocks from `published` up to here are expected by others
    reused: int | None = None  # prompt tokens found in the cache at the first admission
    copy: BlockCopy | None = None  # ordered, not yet done; its source is held
    planned: int = 0  # certain tokens of all its rows under way; 0: there is none
    drafted: Proposal = NOTHING  # of the last of these rows, which is the only one then
    price: float = 0.0  # at which they were drafted
    turn: int = 0  # number of the step that last had a row of it
    picked: int = 0  # number of the step that last had a pick of it: what an earlier one chose comes too late
    life: int = 0  # times it lost its blocks: rows under way of an earlier life are void
    drafting: Drafting | None = None  # from the first decode on

    @property
    def seniority(self) -> tuple[int, int, int]:
        """Less is served first and preempted last. Who gave way often enough does so only to who is older still."""
        if self.preempted >= ENOUGH_PREEMPTIONS:
            return (0, 0, self.id)
        return (1, -self.submission.priority, self.id)

    @property
    def pending(self) -> int:
        """Tokens to be computed that are not under way."""
        return len(self.tokens) - self.computed - self.planned

    @property
    def sampled(self) -> bool:
        return self.submission.output == "sample"

    @property
    def overflows(self) -> bool:
        return len(self.tokens) > self.max_context

    @property
    def private(self) -> bool:
        """Its tokens do not say what is in its blocks: they are found by nobody, nor are others by it."""
        return self.submission.vectors is not None

    def shareable_blocks(self) -> int:
        """So many blocks may come from the cache: one token at least is computed, and no wanted output is left out."""
        if self.private:
            return 0
        last = len(self.tokens) - 1
        if not self.sampled and not self.submission.last_only:
            last = min(last, self.told)
        return last // self.chain.block_tokens

    def forget_blocks(self) -> None:
        """Everything is to be computed again; who held the blocks has released them."""
        self.blocks = []
        self.computed = self.published = self.planned = 0
        self.answering = False
        self.copy = None
        self.drafted = NOTHING
        self.life += 1

    def rename(self) -> None:
        """The tokens are others now."""
        self.chain = BlockChain(self.chain.salt, self.chain.block_tokens, self.chain.digest)
        self.drafting = None
        self.picked = 0


@dataclass(slots=True)
class RunningSet:
    """The running sequences, most senior first."""

    members: list[SequenceState] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(self.members)

    def add(self, state: SequenceState) -> None:
        state.running = True
        insort(self.members, state, key=lambda member: member.seniority)

    def remove(self, state: SequenceState) -> None:
        state.running = False
        self.members.remove(state)
