"""From the engine's thread to the event loops of those who asked, with at most one wake-up a step and loop.

`Outlet` belongs to one event loop, `Call` to one request. Invariants: whoever waits on a call gets its events in order
and exactly one end, a `Done`, a result or an error; what comes after the end is dropped; a loop that was closed is
noticed and harms nobody. Must not know what the events mean beyond which of them is the last.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gpu_node.engine.sequence import Done, Embeddings, Inference, Token
from gpu_node.errors import NodeError

Result = Done | Embeddings | Inference
Told = Token | Result | NodeError


class Outlet:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.dead = False  # the loop is closed: nobody will ever read what is put here
        self._box: deque[tuple[Call, Told]] = deque()
        self._armed = False

    def put(self, call: Call, event: Told) -> None:
        """From any thread; heard of after the next `flush`."""
        self._box.append((call, event))

    def flush(self) -> None:
        """From any thread. One wake-up carries everything that was put before the loop gets to it."""
        if self.dead or self._armed or not self._box:
            return
        self._armed = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed
            self.dead = True
            self._box.clear()

    def _deliver(self) -> None:
        self._armed = False  # first: what is put from now on arms anew
        while self._box:
            call, event = self._box.popleft()
            call.receive(event)


class Call:
    """One request, as its event loop sees it."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self._events: deque[Told] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def tell(self, event: Told) -> None:
        """From the engine's thread; see `Outlet.put`."""
        self.outlet.put(self, event)

    @property
    def ended(self) -> bool:
        """The end has come, though it may not have been read yet."""
        return self._ended

    def receive(self, event: Told) -> None:
        """In the loop's thread."""
        if self._ended:
            return
        self._ended = not isinstance(event, Token)
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Token | Result:
        """Raises the error that ends the request."""
        while not self._events:
            self._waiter = self.outlet.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if isinstance(event, NodeError):
            raise event
        return event
