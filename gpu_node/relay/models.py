"""Models for relay clients: brought in when a request needs them, and how far that is told meanwhile.

Invariants: a model that is there costs nothing more; whoever waits hears at once and then every half second what it
waits for. Must not know sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from gpu_node.errors import DeadlineExceeded
from gpu_node.host import ModelHost
from gpu_node.relay.translation import joined
from gpu_node.residents import Residents
from wire.frames import FrameType
from wire.messages import encode_message
from wire.messages_work import Phase, Progress

# How often a client hears that a loading still goes on.
PROGRESS_SECONDS = 0.5
PHASES = {"fetching": Phase.FETCHING, "waiting for room": Phase.WAITING, "loading": Phase.READING}

Tell = Callable[[FrameType, bytes], Awaitable[None]]


class Models:
    def __init__(self, residents: Residents, progress_seconds: float = PROGRESS_SECONDS) -> None:
        self.residents = residents
        self._pause = progress_seconds

    @asynccontextmanager
    async def hold(
        self, name: str, tell: Tell, keep_alive_seconds: float | None = None, patience_seconds: float | None = None
    ) -> AsyncIterator[ModelHost]:
        """As `Residents.hold`. Raises `DeadlineExceeded` when the model is not there in time."""
        host = self.residents.find(name)
        async with AsyncExitStack() as stack:
            holding = self.residents.hold(name, keep_alive_seconds)
            if host.ready and not host.leaving:
                yield await stack.enter_async_context(holding)
                return
            try:
                async with self.telling(lambda: host, tell), asyncio.timeout(patience_seconds):
                    held = await stack.enter_async_context(holding)
            except TimeoutError:
                raise DeadlineExceeded() from None
            yield held

    @asynccontextmanager
    async def telling(self, host: Callable[[], ModelHost | None], tell: Tell) -> AsyncIterator[None]:
        """PROGRESS goes out while the block runs."""
        task = asyncio.get_running_loop().create_task(self._tell(host, tell), name="tell of a loading")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # a client that is gone is noticed by the request

    async def _tell(self, host: Callable[[], ModelHost | None], tell: Tell) -> None:
        while True:
            await tell(FrameType.PROGRESS, joined(encode_message(progress_of(host()))))
            await asyncio.sleep(self._pause)


def progress_of(host: ModelHost | None) -> Progress:
    if host is None or not host.activity:
        return Progress(Phase.WAITING)
    phase, done, total = PHASES.get(host.activity, Phase.WAITING), 0, 0
    if phase is Phase.READING:
        done, total = host.read_bytes, host.total_bytes
        if total and done >= total:
            phase = Phase.PREPARING
    return Progress(phase, done, total, host.activity)
