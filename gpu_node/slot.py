"""The right to run one request: first come, first served, with a bounded queue.

A waiting client that leaves gives its place up at once; a client beyond the bound is refused at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_node.errors import NodeBusy


class Slot:
    def __init__(self, max_waiting: int) -> None:
        self._lock = asyncio.Lock()  # wakes its waiters in order
        self._max_waiting = max_waiting
        self._waiting = 0

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    @property
    def waiting(self) -> int:
        return self._waiting

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        if self._lock.locked() and self._waiting >= self._max_waiting:
            raise NodeBusy()
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()
