"""What the head of a split model tells a worker, and what the worker tells the head: values on the control link.

    head                                                        worker
      <- Hello                                    (at once: its data gate, its device)
      Load ->                  <- Progress ...    <- Loaded     (beside the steps of the part that is current)
      Take ->                                     <- Taken      (fresh cache, the epoch's links are made)
      Release, Stop ->                            <- Done
                               <- Failed instead of any of these answers, Busy before silence, Report now and then

A worker is `python -m gpu_node.pipeline.worker PLACE NUMBER [DEVICE]`, with the token as its first line of input.
Invariants: every order has a number of its own, which its answers name; an order has exactly one last answer. Pure.
Must not know links or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpu_node.errors import UsageError
from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.order_codec import OrderCodec

# Of stage numbers these are nobody's: the worker of a control link.
CONTROL = 0x8000
WORKER_MOST = 0x3FFF
# "no_room_beside": it does not fit beside the current part with its cache, and may once that is gone.
# "out_of_memory": not at all. "model": the files cannot be loaded so. "links": a neighbour was not to be had.
FailureKind = Literal["no_room_beside", "out_of_memory", "model", "links", "error"]
# A socket's path, or host and port.
AnyPlace = str | tuple[str, int]


@dataclass(frozen=True, slots=True)
class LoadWords:
    """As `LoadOptions` of the engine, by their names."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: Literal["auto", "full", "stored", "int8", "int4"] = "auto"
    kernels: Literal["auto", "torch", "compiled"] = "auto"
    kernel_folder: str | None = None
    threads: int = 0  # 0: torch decides, within what a container is granted
    device: str = "cpu"  # as torch calls it in the worker's process: "cuda:0" is the first that it sees


@dataclass(frozen=True, slots=True)
class Load:
    """Prepare the layers `first` to `behind` (excluded) as the next part; layers of the current one are used again.

    One next part at a time: a Load takes the place of an earlier one that was not taken."""

    number: int
    path: str  # as for `model_files`
    first: int
    behind: int
    load: LoadWords
    budget_bytes: int | None = None  # for weights and cache; None: as much as there is
    speed: float = 1.0  # of 1: after computing for t seconds it rests for t / speed - t
    drop_current: bool = False  # the current part and its cache are let go first: all steps are over


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Of one step; more is refused."""

    rows: int = 4096
    tokens: int = 1 << 16
    copies: int = 4096


@dataclass(frozen=True, slots=True)
class Take:
    """Compute with this part, over a fresh cache, in this epoch's ring. An earlier epoch is over with it."""

    number: int
    part: int  # the number of the Load that made it: the next part, or the current one once more
    epoch: int
    stage: int
    stages: int
    block_tokens: int
    block_count: int
    near_count: int  # blocks of its own: those from here on lie elsewhere
    next_place: AnyPlace  # the data gate of the next stage's worker, or the head's ring gate
    limits: StepLimits = StepLimits()
    links_seconds: float = 10.0  # so long it waits for each of its two neighbours
    threads: int = 0  # from now on: who loaded the part may have had others beside it; 0: torch decides


@dataclass(frozen=True, slots=True)
class Release:
    """Forget what was loaded and not taken, also if it is still loading."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Answered with Done; then the worker closes everything and ends."""

    number: int


@dataclass(frozen=True, slots=True)
class Hello:
    pid: int
    place: AnyPlace  # of its data gate
    device: str  # its name, for people
    total_bytes: int
    free_bytes: int
    start_seconds: float  # from the start of its process until now


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of the files that are read; those of layers that it holds already count as done."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class LayerCache:
    """As the engine's `LayerShape`."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Loaded:
    number: int
    weights_bytes: int
    token_bytes: int  # of the cache, for a token in these layers
    hidden_size: int
    vocabulary: int
    dtype: str  # of the cache, as in "bfloat16"
    compute: str
    device: str
    layers: tuple[LayerCache, ...]
    forms: tuple[tuple[str, int], ...]  # `Holding`: bytes by form of product, and relative errors
    errors: tuple[float, ...]
    reused_layers: int
    read_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Taken:
    number: int
    epoch: int
    cache_bytes: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Done:
    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    number: int
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Busy:
    """For up to so long it may say nothing at all: a call keeps the interpreter's lock. 0: that is over."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """At most twice a second, while something changes."""

    epoch: int
    steps: int  # since its start
    computed_tokens: int
    busy_seconds: float  # with its rests
    weights_bytes: int  # of the current part, and of what a next one has beside it
    cache_bytes: int
    resident_bytes: int  # of the process
    free_bytes: int  # of the device
    broken: str = ""  # why the ring of this epoch is over; empty: it is not
    hop_microseconds: float = 0.0  # what receiving a step and handing it on took its two links, on average; 0: no step


TO_WORKER: tuple[type, ...] = (Load, Take, Release, Stop)
TO_HEAD: tuple[type, ...] = (Hello, Progress, Loaded, Taken, Done, Failed, Busy, Report)
CODEC = OrderCodec((*TO_WORKER, *TO_HEAD))


def control_ends(worker: int) -> LinkEnds:
    """Of the link over which the head and the worker of this number talk; the worker connects."""
    if not 0 <= worker <= WORKER_MOST:
        raise ValueError(f"workers are counted from 0 to {WORKER_MOST}, not {worker}")
    return LinkEnds(CONTROL | worker, HEAD)


def ring_ends(stage: int, stages: int, epoch: int) -> tuple[LinkEnds, LinkEnds]:
    """The link that a stage admits, and the one that it makes."""
    before = HEAD if stage == 0 else stage - 1
    behind = HEAD if stage == stages - 1 else stage + 1
    return LinkEnds(before, stage, epoch), LinkEnds(stage, behind, epoch)


def place_text(place: AnyPlace) -> str:
    """As one word of a command."""
    return place if isinstance(place, str) else f"{place[0]}:{place[1]}"


def place_of(text: str) -> AnyPlace:
    """Raises `UsageError` for what is neither an absolute path nor a host and its port."""
    if text.startswith("/"):
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f'"{text}" is no place: a path from / on, or host:port')
    return host, int(port)
