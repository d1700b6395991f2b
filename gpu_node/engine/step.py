"""What one forward pass computes and what comes of it: the values between the scheduler and the runner.

Invariants: a row's new tokens lie at positions `start ..`, and `blocks` covers every slot up to their end; a step's
copies happen before its rows; picks are answered in their order. Must not know torch, nor how many devices compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gpu_node.engine.sequence import SamplingOptions, TokenLogprob
from gpu_node.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from gpu_node.pipeline_status import PipelineStatus

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
    # Blocks from this number on are retired until a `CacheChange` restores them, and slower then. 0: all are promised.
    promised: int = 0

    @property
    def promised_count(self) -> int:
        """Blocks that are there at any time: what contexts may count on."""
        return self.promised or self.block_count


@dataclass(frozen=True, slots=True)
class CacheChange:
    """What has become of the cache while nothing was under way."""

    shape: CacheShape
    reset: bool = False  # its content is lost: everything is computed again
    retired: tuple[int, ...] = ()  # blocks that nobody may use from now on
    restored: tuple[int, ...] = ()  # blocks that may be used again, with unknown content


class ModelRunner(Protocol):
    """One loaded model. Every call comes from the engine's thread but for those said to be any thread's; it lives until
    `close`."""

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

    @property
    def pipeline(self) -> PipelineStatus | None:
        """From any thread; None for a model that is not split."""
        ...

    @property
    def depth(self) -> int:
        """So many steps are worth being under way at once; 1: a step is begun when the one before it is finished."""
        ...

    @property
    def restless(self) -> bool:
        """`tend` has something to do. Cheap: it is asked before every step."""
        ...

    @property
    def lends(self) -> bool:
        """`tend` can do something about a shortage of blocks, so that it is worth being told of one."""
        ...

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        """`begin` and `finish` in one, while nothing is under way.

        Raises `DeviceOutOfMemory` with nothing published; any other error means some row is poisoned."""
        ...

    def begin(self, step: Step) -> None:
        """Send a step off; at most `depth` are under way, and they are computed in this order, each on what those
        before it have written. Raises `StageLost`; the step is not under way then."""
        ...

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        """Of the oldest step under way, which is not under way any more then, whatever is raised.

        Raises `DeviceOutOfMemory` and `StageLost`; any other error means some row is poisoned."""
        ...

    def drop(self) -> None:
        """Let all that is under way run out, and forget the results. Never raises."""
        ...

    def listen(self, wake: Callable[[], None]) -> None:
        """`wake` is called, from any thread, when the runner becomes restless: an idle engine asks nothing."""
        ...

    def tend(self, shortage: int, urgent: bool = False) -> CacheChange | None:
        """Do what is to be done between steps, while nothing is under way; it may take long.

        `shortage`: blocks that the engine needs now and does not find; `urgent`: somebody who runs gives way without
        them, otherwise somebody waits. Raises `NodeError` when the model cannot be
        computed any more: what asks for it ends with that error, and later requests lead to another try."""
        ...

    def shrink_cache(self, block_count: int) -> CacheShape:
        """Give memory back: the cache is emptied and has fewer blocks afterwards."""
        ...

    def close(self) -> None: ...


class StepByStep(ABC):
    """The part of a `ModelRunner` that computes a step where it is called: nothing is ever computed meanwhile."""

    depth = 1
    restless = False
    lends = False
    pipeline: PipelineStatus | None = None

    def __init__(self) -> None:
        self._begun: deque[Step] = deque()

    @abstractmethod
    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult: ...

    def begin(self, step: Step) -> None:
        self._begun.append(step)

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        return self.run(self._begun.popleft(), picks)

    def drop(self) -> None:
        self._begun.clear()

    def listen(self, wake: Callable[[], None]) -> None:
        del wake  # it is never restless

    def tend(self, shortage: int, urgent: bool = False) -> CacheChange | None:
        return None
