"""A stage that borrows, and lenders in threads: messages go through queues, as they would over links."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gpu_node.engine.kv_pool import KvPool
from gpu_node.memory.borrowing import BorrowedCache
from gpu_node.memory.lend_messages import Bytes
from gpu_node.memory.lender import Lender
from gpu_node.memory.lent_blocks import LentBlocks
from gpu_node.memory.places import CacheForm
from gpu_node.pipeline.errors import LinkClosed

HOLDER = 0


class QueueChannel:
    """One end; None on the queue is the end of it."""

    def __init__(self, out: queue.SimpleQueue[bytes | None], into: queue.SimpleQueue[bytes | None]) -> None:
        self._out, self._in = out, into
        self.said = 0
        self.bytes_said = 0

    def say(self, *parts: Bytes) -> None:
        data = b"".join(parts)
        self.said += 1
        self.bytes_said += len(data)
        self._out.put(data)

    def hear(self) -> memoryview:
        data = self._in.get(timeout=60)
        if data is None:
            self._in.put(None)
            raise LinkClosed("the other side is gone")
        return memoryview(bytearray(data))

    def close(self) -> None:
        self._out.put(None)
        self._in.put(None)


def channel_pair() -> tuple[QueueChannel, QueueChannel]:
    one: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    two: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    return QueueChannel(one, two), QueueChannel(two, one)


@contextmanager
def served(lender: Lender, stage: int, form: CacheForm) -> Iterator[tuple[LentBlocks, QueueChannel]]:
    """The lender of stage `stage`, as its holder meets it."""
    here, there = channel_pair()

    def serve() -> None:
        try:
            lender.serve(HOLDER, there)
        except LinkClosed:
            pass
        finally:
            there.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield LentBlocks(stage, form, here, here.close), here
    finally:
        here.close()
        thread.join(60)
        assert not thread.is_alive(), "the lender hangs"


class Borrowed:
    """A pool of its own and `lenders` others."""

    def __init__(self, cache: BorrowedCache, lenders: dict[int, Lender], channels: dict[int, QueueChannel]) -> None:
        self.cache, self.lenders, self.channels = cache, lenders, channels
        self._next = 1

    def borrow(self, stage: int, first: int, behind: int) -> int:
        lease = self._next
        self._next += 1
        self.lenders[stage].lend(HOLDER, lease, (first, behind), self.cache.form)
        self.cache.borrow(lease, stage, (first, behind))
        return lease


@contextmanager
def borrowing(near: KvPool, blocks: int, stages: tuple[int, ...] = (1,)) -> Iterator[Borrowed]:
    cache = BorrowedCache(near, blocks)
    lenders = {stage: Lender("cpu") for stage in stages}
    channels = {}
    with ExitStack() as stack:
        for stage, lender in lenders.items():
            met, channels[stage] = stack.enter_context(served(lender, stage, cache.form))
            cache.meet(met)
        yield Borrowed(cache, lenders, channels)
