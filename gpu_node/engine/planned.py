"""What the scheduler is given and what it plans: values only.

Invariants: a sequence is one sample; a submission of n samples becomes n sequences that share the prompt's blocks.
Times are seconds on the engine's clock. Must not know torch, text, sampling options or who is told of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gpu_node.engine.step import Step

Wanted = Literal["sample", "logits", "hidden"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be held and computed at once."""

    block_tokens: int
    block_count: int
    max_running: int = 32
    step_tokens: int = 512  # of a step that only reads prompts
    mixed_step_tokens: int = 64  # of one that also decodes, at most as many: answers flow on while prompts are read
    max_waiting: int = 512  # submissions; one more is refused
    max_drafts: int = 8  # of one sequence in one step; 0: never speculate
    step_pairs: int = (
        0  # pairs of a new token and one it sees in a full step, as far as known beforehand; 0: any number
    )
    promised: int = 0  # blocks that are there at any time, the first ones; the others come and go. 0: all

    def __post_init__(self) -> None:
        assert min(self.block_tokens, self.block_count, self.max_running, self.step_tokens, self.mixed_step_tokens) > 0
        assert self.max_waiting >= 0 and self.max_drafts >= 0 and 0 <= self.promised <= self.block_count

    def budget(self, decodes: int, depth: int) -> int:
        """Tokens of a step with so many decodes; `depth`: tokens that the deepest prompt in it has behind it.

        Attention's work grows with what a token sees: deep in a book a step reads less of it, so that it does not last
        longer. Decodes always have room beside a piece of a block."""
        tokens = min(self.step_tokens, self.mixed_step_tokens) if decodes else self.step_tokens
        if not self.step_pairs or not depth:
            return tokens
        bearable = self.step_pairs * tokens // self.step_tokens // depth
        return min(tokens, max(bearable, decodes + self.block_tokens))

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that the cache holds when it is alone, whatever blocks come and go."""
        return self.block_tokens * self.promised_count

    @property
    def promised_count(self) -> int:
        return self.promised or self.block_count

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True, slots=True)
class Submission:
    """One request: a prompt, and what is wanted of it."""

    ids: tuple[int, ...]  # at least one
    max_context: int  # tokens of prompt and answer together; at most `Limits.capacity_tokens`
    samples: int = 1
    priority: int = 0  # higher goes first among one caller's, and is preempted last
    deadline: float | None = None
    caller: str = ""
    salt: str = ""  # only sequences of one salt share blocks
    output: Wanted = "sample"
    last_only: bool = False  # of logits and hidden states
    speculate: bool = True  # drafts are welcome; `Scheduler.speculate` changes it later
    # Embeddings in place of those of `ids`: an array [tokens, hidden size] that is only cut up here. What is computed
    # of them is no other sequence's, since tokens do not name it.
    vectors: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.ids and self.samples > 0 and len(self.ids) <= self.max_context
        assert self.output == "sample" or self.samples == 1
        assert self.vectors is None or (self.output != "sample" and len(self.vectors) == len(self.ids))


@dataclass(frozen=True, slots=True)
class PlannedPick:
    """A sequence that gets tokens out of this step. Samples that fork now name their first one's row."""

    row: int  # index into `Step.rows`
    sequence: int
    drafts: tuple[int, ...] = ()  # the row's last tokens; the row has 1 + len(drafts) output tokens


@dataclass(frozen=True, slots=True)
class PlannedRead:
    """A row whose logits or hidden states are the answer. Each token's come exactly once, in order."""

    row: int
    sequence: int
    last: bool  # the sequence leaves by itself when this is committed


@dataclass(frozen=True, slots=True)
class Planned:
    """One step. Steps are committed in the order in which they were planned; who abandons one abandons all after it."""

    step: Step
    picks: tuple[PlannedPick, ...]
    reads: tuple[PlannedRead, ...]
    planned_at: float
    decodes: int  # rows that go on with an answer
    prompt_tokens: int  # tokens of all other rows
    turn: int = 0  # number of the step
    lives: tuple[int, ...] = ()  # of each row's sequence when it was planned


@dataclass(frozen=True, slots=True)
class Counts:
    """What is held now, and what has happened since the start."""

    running: int
    waiting: int
    blocks_used: int
    blocks_free: int  # empty
    blocks_cached: int  # used by nobody, kept for prompts to come
    preemptions: int
    prompt_tokens: int  # of admitted prompts, each counted once
    prefix_hit_tokens: int  # of those, found in the cache
    drafts: int
    accepted_drafts: int
