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
from gpu_node.names import same_model
from gpu_node.slot import Slot


class ModelHost:
    def __init__(
        self,
        engine: Engine,
        names: tuple[str, ...],
        keep_alive_seconds: float,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.slot = Slot(max_waiting)
        self._names = names
        self._keep_alive = keep_alive_seconds
        self._clock = clock
        self._expires = FOREVER
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._names[0]

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
                yield time.perf_counter_ns() - begun
            finally:
                self._rest(self._keep_alive if keep_alive_seconds is None else keep_alive_seconds)

    async def unload(self) -> None:
        async with self.slot.hold():
            self._stop_timer()
            await self.engine.unload()

    async def start(self) -> None:
        """Load without a request, then rest like after one."""
        async with self.turn():
            pass

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        self._stop_timer()
        if self._expiry is not None:
            self._expiry.cancel()
        return await self.engine.close(timeout_seconds)

    async def expire(self) -> None:
        """Unload if the time is really over; a request that came meanwhile has moved it."""
        async with self.slot.hold():
            if self._clock() >= self._expires:
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
