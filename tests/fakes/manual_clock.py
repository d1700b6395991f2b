"""A clock that stands still until a test moves it. `advance` wakes the sleepers in the order of their times."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from server.clock import Clock

TURNS = 50  # enough turns of the event loop for whatever a woken task does without real input


class ManualClock:
    """`clock` is what the code under test gets. Monotonic time starts at 0, wall time at `wall_start`."""

    def __init__(self, wall_start: float = 1_800_000_000.0) -> None:
        self.now = 0.0
        self.wall_start = wall_start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, wall=lambda: self.wall_start + self.now, sleep=self.sleep)

    @property
    def sleeping(self) -> list[float]:
        """The times at which somebody wants to be woken."""
        return sorted(when for when, _, future in self._sleepers if not future.done())

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let the time pass, one sleeper after the other, each with what it does next."""
        until = self.now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            when, _, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, when)
            if not future.done():
                future.set_result(None)
                await self.settle()
        self.now = until

    async def settle(self) -> None:
        """Let every task run until it waits for the clock, or for something from outside."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
