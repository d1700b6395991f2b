"""What one forward pass computes and what comes of it: the values between the scheduler and the runner.

Invariants: a row's new tokens lie at positions `start ..`, and `blocks` covers every slot up to their end; a step's
copies happen before its rows; picks are answered in their order. Must not know torch, nor how many devices compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gpu_node.engine.sequence import SamplingOptions, TokenLogprob
from gpu_node.engine.vocabulary import Vocabulary

Output = Literal["nothing", "logits", "hidden"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of one step."""

    sequence: int
    tokens: Sequence[int]  # to be computed, in order; with speculation the drafts are the last of them
    start: int  # position of the first of them, and the number of slots already filled
    blocks: Sequence[int]  # block ids in order; slot p lies in blocks[p // block_tokens]
    output: Output = "nothing"
    output_tokens: int = 0  # so many of the last tokens have a row in the output
    # Embeddings that are read in place of those of `tokens`: a float32 array [tokens, hidden size].
    vectors: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Step:
    rows: tuple[Row, ...]
    copies: tuple[BlockCopy, ...] = ()

    @property
    def token_count(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Pick:
    """One sample that wants its next token from a row's logits.

    `key` and `written` name the draw: the same pair draws the same number whatever else is in the batch, so neither
    batching, preemption nor speculation changes an answer.
    """

    row: int  # index into `Step.rows`; several samples of one prompt may name the same row
    options: SamplingOptions
    key: int  # 64-bit seed of this sample
    written: int  # output tokens so far, before this step's
    history: Sequence[int]  # prompt and output so far, without drafts
    drafts: tuple[int, ...] = ()  # judged one after the other; the row has 1 + len(drafts) output tokens
    banned: frozenset[int] = frozenset()  # tokens that must not be chosen
    allowed: bytes | None = None  # bit mask of the vocabulary, least significant bit first; None: everything


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of a pick: at least one token, or an error of its own."""

    tokens: tuple[int, ...] = ()  # accepted drafts, then the one token that the model chose after them
    logprobs: tuple[TokenLogprob, ...] = ()
    error: str = ""  # for instance logits that are not finite


@dataclass(frozen=True, slots=True)
class StepResult:
    choices: tuple[Choice, ...]
    # Row index to a float32 numpy array (output_tokens, vocabulary or hidden size), for rows that nobody picks from.
    arrays: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The key-value cache as the scheduler must know it."""

    block_tokens: int
    block_count: int
    block_bytes: int
    window: int | None = None  # set when every layer looks back only so far


class ModelRunner(Protocol):
    """One loaded model. Every call comes from the engine's thread; it lives until `close`."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def memory_bytes(self) -> int:
        """Of the weights."""
        ...

    @property
    def cache(self) -> CacheShape: ...

    @property
    def embedding_length(self) -> int: ...

    @property
    def summary(self) -> dict[str, Any]:
        """For people: how weights are held, their error against bfloat16, which kernels run, what loading took."""
        ...

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        """Raises `DeviceOutOfMemory` with nothing published; any other error means some row is poisoned."""
        ...

    def shrink_cache(self, block_count: int) -> CacheShape:
        """Give memory back: the cache is emptied and has fewer blocks afterwards."""
        ...

    def close(self) -> None: ...
