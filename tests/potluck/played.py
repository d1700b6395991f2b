"""A played node for either client: the asyncio one with pauses that nobody feels, the blocking one with a thread."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Any

from potluck import AsyncRelay
from potluck.relay_loop import LoopThread
from tests.fakes.relay_node import FakeRelayNode, fake_relay_node
from transport.pauses import PausePolicy
from transport.session import SessionSettings

QUICK = SessionSettings(name="test", pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01))


def relay_of(node: FakeRelayNode, **options: Any) -> AsyncRelay:
    return AsyncRelay((node.place.host, node.place.port), settings=QUICK, **options)


class NodeThread:
    """The played node, whose methods are called in its own loop."""

    def __init__(self, thread, node):
        self.thread, self.node = thread, node
        self.place = str(node.place)

    def do(self, work):
        async def done():
            result = work(self.node)
            return await result if asyncio.iscoroutine(result) else result

        return self.thread.run(done())


@contextmanager
def playing(**settings):
    thread = LoopThread()
    context = fake_relay_node(**settings)
    node = thread.run(context.__aenter__())
    try:
        yield NodeThread(thread, node)
    finally:
        thread.close(context.__aexit__(None, None, None))
