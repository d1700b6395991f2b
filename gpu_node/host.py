"""One model that this node can serve: its names, its engine, who uses it now, and until when it stays in memory.

Invariants: any number of requests hold it at once, up to its bound; it leaves only while none of them runs; whatever
ends a request, the time to stay is counted anew. When it comes and goes is decided by `residents`. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from gpu_node.durations import FOREVER
from gpu_node.engine.sequence import (
    Bounds,
    EmbeddingRequest,
    Embeddings,
    Event,
    GenerationRequest,
    Inference,
    InferenceRequest,
    Prompt,
)
from gpu_node.engine.step import ModelRunner
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription
from gpu_node.names import same_model
from gpu_node.slot import Slots
from gpu_node.vram import Account, Claim, ModelSize, needed

if TYPE_CHECKING:
    from gpu_node.engine.stats import EngineStats
    from gpu_node.pipeline_status import PipelineStatus

# Unless the settings say otherwise: the cache of a longer conversation may not fit beside the weights.
LARGEST_DEFAULT_CONTEXT = 8192
# For the few checkpoints that do not say how far their positions reach.
UNSTATED_CONTEXT = 2048


class HostedEngine(Protocol):
    """What a host needs of an engine; `gpu_node.engine.engine.Engine` is the real one."""

    error: str

    @property
    def state(self) -> str: ...

    @property
    def runner(self) -> ModelRunner | None: ...

    @property
    def busy(self) -> bool: ...

    def stats(self) -> EngineStats: ...

    async def load(self) -> None: ...

    async def unload(self) -> None: ...

    async def render(self, prompt: Prompt, bounds: Bounds) -> str: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]: ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings: ...

    async def infer(self, request: InferenceRequest) -> Inference: ...

    def stop(self) -> None: ...

    async def close(self, timeout_seconds: float = 5.0) -> bool: ...


# Called in the engine's thread with the bytes that are read and those that will be.
Progress = Callable[[int, int], None]


class ModelFiles(Protocol):
    """Where the model comes from."""

    async def prepare(self) -> ModelDescription:
        """Fetch what is missing and read what it is. May take minutes; any number of calls."""
        ...

    def load(self, description: ModelDescription, wish: LoadWish, progress: Progress) -> ModelRunner:
        """In the engine's thread. `wish` names the cache's size."""
        ...


@dataclass(frozen=True, slots=True)
class Stay:
    """The rules of one model's presence."""

    keep_alive_seconds: float = 300.0
    max_waiting: int = 512
    clock: Callable[[], float] = time.monotonic


# What a model of this description takes where it is split over several devices, which size its cache themselves.
# Raises `DoesNotFit`. In any thread.
SplitClaim = Callable[[ModelDescription], Claim]
MakeEngine = Callable[[Callable[[], ModelRunner], LoadWish], HostedEngine]


class ModelHost:
    def __init__(
        self,
        names: tuple[str, ...],
        files: ModelFiles,
        make_engine: MakeEngine,
        wish: LoadWish,
        stay: Stay,
        split_claim: SplitClaim | None = None,
    ) -> None:
        """The first of `names` is the one that is listed."""
        self._names, self._files, self._stay, self._split_claim = names, files, stay, split_claim
        self.wish = wish
        self.before: LoadWish | None = None  # how it was loaded until somebody wanted it otherwise, which is unproven
        self._granted = wish  # as it is loaded: the cache has a size
        self.engine = make_engine(self._load, wish)
        self.slots = Slots(wish.max_running, stay.max_waiting)
        self.description: ModelDescription | None = None  # known once the files are there
        self.loaded_once = False
        self.running = 0  # requests that have the model, not only wait for it
        self.leaving = False
        self.fresh = False  # loaded for somebody who has not taken it yet
        self.owners: set[str] = set()  # sessions that want it here until they give it back
        self.activity = ""  # what a loading is doing just now
        self.read_bytes = self.total_bytes = 0  # of the weights, while they are loaded
        self.error = ""
        self.last_used = stay.clock()
        self._keep_alive = stay.keep_alive_seconds
        self._expires = FOREVER
        self._dismissed = False

    @property
    def name(self) -> str:
        return self._names[0]

    @property
    def ready(self) -> bool:
        return self.engine.runner is not None and self.engine.state == "ready"

    @property
    def idle(self) -> bool:
        return self.running == 0 and not (self.fresh and self.slots.busy)

    @property
    def state(self) -> str:
        """What the engine says, but that fetching and waiting for room are parts of loading."""
        if self.activity and self.engine.state in ("empty", "failed"):
            return "loading"
        return "failed" if self.error and self.engine.state == "empty" else self.engine.state

    @property
    def failure(self) -> str:
        return self.error or self.engine.error

    @property
    def pipeline(self) -> PipelineStatus | None:
        """Under this host's name; None for a model that is not split, or not in memory."""
        told = self.engine.runner.pipeline if self.engine.runner is not None else None
        return None if told is None else replace(told, model=self.name)

    @property
    def context_tokens(self) -> int:
        """The longest context that a request may have here."""
        own = (self.description.context_length if self.description else 0) or UNSTATED_CONTEXT
        context = min(self.wish.context or LARGEST_DEFAULT_CONTEXT, own)
        runner = self.engine.runner
        return context if runner is None else min(context, runner.cache.promised_count * runner.cache.block_tokens)

    def serves(self, name: str) -> bool:
        return any(same_model(name, own) for own in self._names)

    @property
    def seconds_left(self) -> float:
        """How long the model stays if nobody asks for it."""
        if self.owners:
            return FOREVER
        return max(self._expires - self._stay.clock(), 0.0)

    @property
    def kept(self) -> bool:
        """For ever, whether a session wants it or not."""
        return not math.isfinite(self._expires)

    async def prepare(self) -> None:
        self.description = await self._files.prepare()

    async def claim(self, account: Account) -> Claim:
        """What loading will take from the account. Call after `prepare`."""
        described = self.description
        assert described is not None, "prepared before"
        if self._split_claim is not None:
            return await asyncio.to_thread(self._split_claim, described)  # many splits of many layers are tried
        size = ModelSize(described.parameter_count, described.size_bytes, described.config, described.quantisation)
        return needed(size, self.wish, self.context_tokens, account)

    @property
    def held(self) -> Claim:
        """What the loaded model really takes."""
        runner = self.engine.runner
        assert runner is not None, "only a loaded model holds something"
        return Claim(runner.memory_bytes, runner.cache.promised_count * runner.cache.block_bytes)

    async def load(self, granted: Claim) -> None:
        """Raises whatever the engine raises."""
        given = bool(self.wish.kv_bytes or self.wish.kv_blocks) or self._split_claim is not None
        self._granted = self.wish if given else replace(self.wish, kv_bytes=granted.cache_bytes)
        await self.engine.load()
        self.loaded_once, self._dismissed = True, False

    @contextmanager
    def use(self, keep_alive_seconds: float | None = None) -> Iterator[None]:
        """The model is there and stays meanwhile; afterwards its time begins anew."""
        self.running += 1
        self.fresh = False
        try:
            yield
        finally:
            self.running -= 1
            self.rest(keep_alive_seconds)

    def rest(self, keep_alive_seconds: float | None = None) -> None:
        """Count the time to stay anew."""
        self.last_used = self._stay.clock()
        seconds = self._keep_alive if keep_alive_seconds is None else keep_alive_seconds
        self._expires = self.last_used + (0.0 if self._dismissed else seconds)

    def dismiss(self) -> None:
        """Its time is over as soon as nobody has it, whatever those who have it wished."""
        self._dismissed = True
        self.rest()

    def keep(self, seconds: float) -> None:
        """From now on, unless a request says otherwise."""
        self._keep_alive, self._dismissed = seconds, False
        self.rest()

    def _load(self) -> ModelRunner:
        assert self.description is not None, "prepared before"
        self.read_bytes = self.total_bytes = 0
        return self._files.load(self.description, self._granted, self._progressed)

    def _progressed(self, done: int, total: int) -> None:
        self.read_bytes, self.total_bytes = done, total
