"""The one model that this node serves: who may use it now, whether it is in memory, and until when it stays there.

Invariants: one request at a time holds the engine; a model leaves memory only while nobody holds it; whatever ends a
request, the slot is freed and the time to stay is counted anew. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gpu_node.durations import FOREVER
from gpu_node.engine.engine import Engine
from gpu_node.model_folder import ModelDescription
from gpu_node.names import same_model
from gpu_node.slot import Slot

# Unless the settings say otherwise: the cache of a longer conversation may not fit beside the weights.
LARGEST_DEFAULT_CONTEXT = 8192
# For the few checkpoints that do not say how far their positions reach.
UNSTATED_CONTEXT = 2048
# Event loops fire timers up to their clock's resolution too early.
TIMER_SLACK_SECONDS = 0.01


class ModelHost:
    def __init__(
        self,
        engine: Engine,
        names: tuple[str, ...],
        keep_alive_seconds: float,
        max_waiting: int,
        context_wanted: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.slot = Slot(max_waiting)
        self._names = names
        self._keep_alive = keep_alive_seconds
        self._context_wanted = context_wanted
        self.description: ModelDescription | None = None  # known once the files are there
        self._clock = clock
        self.loaded_once = False
        self._expires = FOREVER
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._names[0]

    @property
    def context_tokens(self) -> int:
        """The longest context that a request may have here."""
        own = (self.description.context_length if self.description else 0) or UNSTATED_CONTEXT
        return min(self._context_wanted or LARGEST_DEFAULT_CONTEXT, own)

    def serves(self, name: str) -> bool:
        return any(same_model(name, own) for own in self._names)

    @property
    def seconds_left(self) -> float:
        """How long the model stays if nobody asks for it."""
        return max(self._expires - self._clock(), 0.0)

    @asynccontextmanager
    async def turn(self, keep_alive_seconds: float | None = None) -> AsyncIterator[int]:
        """Wait for the slot and the model; yields the nanoseconds that loading took."""
        async with self.slot.hold():
            self._stop_timer()
            begun = time.perf_counter_ns()
            try:
                await self.engine.load()
                self.loaded_once = True
                yield time.perf_counter_ns() - begun
            finally:
                self._rest(self._keep_alive if keep_alive_seconds is None else keep_alive_seconds)

    async def unload(self) -> None:
        """At once when nobody holds the model, else as soon as everybody who waits has been served."""
        self._stop_timer()
        self._expires = self._clock()
        if self.slot.busy:
            self._begin_expiry()
        else:
            await self.expire()

    async def start(self) -> None:
        """Load without a request. Requests that come meanwhile wait for the same load."""
        await self.engine.load()
        self.loaded_once = True
        if not self.slot.busy:
            self._rest(self._keep_alive)

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        self._stop_timer()
        if self._expiry is not None:
            self._expiry.cancel()
        return await self.engine.close(timeout_seconds)

    async def expire(self) -> None:
        """Unload if the time is really over; a request that came meanwhile has moved it."""
        async with self.slot.hold():
            if self._clock() + TIMER_SLACK_SECONDS >= self._expires:
                await self.engine.unload()

    def _rest(self, seconds: float) -> None:
        self._stop_timer()
        self._expires = self._clock() + seconds
        if math.isfinite(seconds) and self.engine.state == "ready":
            self._timer = asyncio.get_running_loop().call_later(seconds, self._begin_expiry)

    def _begin_expiry(self) -> None:
        self._expiry = asyncio.get_running_loop().create_task(self.expire(), name="unload the idle model")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
