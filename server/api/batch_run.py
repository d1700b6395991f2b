"""Many requests in one call, spread over the whole fleet: what our own batches and OpenAI's have in common.

As many run at once as the fleet has use for; the others wait here, so that a large batch neither fills the queue nor
pushes other callers out of it. One that fails is an error in its place. Knows nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Any

import orjson

from server.api.incoming import Incoming
from server.api.reply import NDJSON, SSE
from server.api.services import Services
from server.errors import GatewayError, InternalError, QueueFull
from server.http_errors import error_record
from server.nodes import NodeStatus

# Per slot of the fleet: one request that runs and one that waits, so that a freed slot never looks for work.
AT_ONCE_PER_SLOT = 2
LEAST_AT_ONCE = 8
# A queue that others keep full: this often the last worker comes back to it before its item becomes an error.
TRIES_AT_FULL_QUEUE = 5
# How often one that waits for a full queue looks whether the gateway is being stopped.
LOOK_SECONDS = 0.5

Record = dict[str, Any]
# Asks one item and gives its record. Raises the GatewayError that becomes its error; is called again after QueueFull.
Item = Callable[[], Awaitable[Record]]
Tell = Callable[[int, Record], Awaitable[None]]


class BatchRun:
    """One batch of one client, in the dialect of its path. Use it once."""

    def __init__(
        self, services: Services, incoming: Incoming, items: Sequence[Item], sizes: Sequence[int] = ()
    ) -> None:
        """`sizes`: how many requests to the fleet each item is; one each where nothing is said."""
        self._services = services
        self._incoming = incoming
        self._items = items
        self._waiting = deque(range(len(items)))
        self._sizes = sizes or [1] * len(items)
        self._most = self._at_once()
        self._running = 0  # requests to the fleet, all items together
        self._left = asyncio.Condition()
        self._workers = min(len(items), self._most)

    async def in_order(self) -> list[Record]:
        """All results, in the order of the items."""
        results: list[Record] = [{}] * len(self._items)

        async def keep(index: int, result: Record) -> None:
            results[index] = result

        await self._run(keep)
        return results

    async def as_they_finish(self, end: Callable[[], Record]) -> None:
        """The whole reply: a record for each result with its `index`, then the one that `end` makes."""
        incoming, events = self._incoming, self._incoming.wants_events()
        before, after = (b"data: ", b"\n\n") if events else (b"", b"\n")
        await incoming.reply.begin(SSE if events else NDJSON)

        async def tell(index: int, result: Record) -> None:
            await incoming.reply.tell(before + orjson.dumps({"index": index, **result}) + after)

        try:
            await self._run(tell)
            last = end()
        except asyncio.CancelledError:
            if incoming.cut_error is None:
                raise
            last = error_record(incoming.cut_error, incoming.dialect)
        await incoming.reply.tell(before + orjson.dumps(last) + after, last=True)

    def _at_once(self) -> int:
        nodes = self._services.registry.fleet.nodes.values()
        slots = sum(node.slots for node in nodes if node.status is NodeStatus.READY)
        return max(LEAST_AT_ONCE, AT_ONCE_PER_SLOT * slots)

    async def _run(self, tell: Tell) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work(tell))

    async def _work(self, tell: Tell) -> None:
        """Answer one item after another. Where the queue is full, one worker fewer tries, down to the last."""
        try:
            while self._waiting:
                index = self._waiting.popleft()
                result = await self._in_turn(index)
                if result is None:
                    self._waiting.appendleft(index)
                    return
                await tell(index, result)
        finally:
            self._workers -= 1

    async def _in_turn(self, index: int) -> Record | None:
        """The item's result, once its requests find room beside the others'; one larger than that runs alone."""
        size = self._sizes[index]
        async with self._left:
            await self._left.wait_for(lambda: not self._running or self._running + size <= self._most)
            self._running += size
        try:
            return await self._result(self._items[index])
        finally:
            self._running -= size
            async with self._left:
                self._left.notify_all()

    async def _result(self, item: Item) -> Record | None:
        """The answer or the error; None when the queue is full and another worker is left to come back to it."""
        dialect = self._incoming.dialect
        for tried in range(1, TRIES_AT_FULL_QUEUE + 1):
            try:
                return await item()
            except QueueFull as error:
                if self._workers > 1:
                    return None
                if tried == TRIES_AT_FULL_QUEUE:
                    return error_record(error, dialect)
                await self._pause(error.retry_after_seconds)
            except GatewayError as error:
                return error_record(error, dialect)
            except Exception as error:  # a fault of ours costs this item, not the others
                self._services.log.failed(self._incoming, error)
                return error_record(InternalError(), dialect)
        raise AssertionError("the loop returns")

    async def _pause(self, seconds: float) -> None:
        """Let the queue empty; no longer than until the gateway stops, which dispatch then tells in its own words."""
        looks = ceil(seconds / LOOK_SECONDS)
        for _ in range(looks):
            if self._incoming.cut_error is not None:
                return
            await asyncio.sleep(seconds / looks)
