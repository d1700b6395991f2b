"""Responses whose stream nobody holds any more: their connections are closed, which stops the work on the node.

Python runs a finalizer in any thread and in the middle of anything, also while a lock of the connection pool is held.
So `take` takes no lock and waits for nothing: it does what is safe there and leaves the rest to `close`. The iterator
over the bytes is kept until its response is closed; dropped before, it would close itself, at the wrong place.
Knows nothing of what was in the streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx

_log = logging.getLogger(__name__)


class Leftovers:
    """Those of a blocking client."""

    def __init__(self) -> None:
        self._taken: deque[tuple[httpx.Response, Iterator[bytes]]] = deque()

    def take(self, response: httpx.Response, chunks: Iterator[bytes]) -> None:
        """Close the connection now; the pool hears of it at the next `close`."""
        if response.is_closed:  # its connection may be another request's by now
            return
        stream = response.extensions.get("network_stream")
        if stream is not None and response.http_version.startswith("HTTP/1"):  # HTTP/2 shares it between requests
            stream.close()
        self._taken.append((response, chunks))

    def close(self) -> None:
        while self._taken:
            with suppress(IndexError, httpx.HTTPError):  # another thread may have taken the last one
                response, _chunks = self._taken.popleft()
                response.close()


class AsyncLeftovers:
    """The same for asyncio: the loop closes them at its next turn."""

    def __init__(self) -> None:
        self._taken: deque[tuple[httpx.Response, AsyncIterator[bytes]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, response: httpx.Response, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        if response.is_closed or loop.is_closed():
            return
        self._taken.append((response, chunks))
        with suppress(RuntimeError):  # the loop was closed in this moment
            loop.call_soon_threadsafe(self._start)

    async def close(self) -> None:
        """All of them are closed afterwards, also those that were being closed before."""
        await self._close_taken()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        if self._taken:
            task = asyncio.get_running_loop().create_task(self._close_taken(), name="potluck-leftovers")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # the loop is being shut down; what it still has of turns is enough
            self._start()

    async def _close_taken(self) -> None:
        while self._taken:
            response, _chunks = self._taken.popleft()
            try:
                await response.aclose()
            except Exception:  # nobody is left to be told
                _log.debug("a stream that was left could not be closed", exc_info=True)


async def close_response(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close it, and bring the generators that httpx stacks upon each other to their end.

    Without that the loop would finish them later, each in a task of its own. On a closed connection of HTTP/1 reading
    on is certain to end, by an error that passes through all of them; of other transports nobody knows. Only for a
    caller who awaits it: a loop that is being shut down closes all generators itself, and must not meet us in them.
    """
    await response.aclose()
    if "network_stream" in response.extensions and response.http_version.startswith("HTTP/1"):
        with suppress(httpx.HTTPError, httpx.StreamError):
            async for _ in chunks:
                pass
