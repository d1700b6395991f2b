"""An event loop in a thread of its own, for a client that blocks: what it runs, it waits for.

Closing it leaves no task, no generator and no thread behind. Knows nothing of nodes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from .errors import PotluckError

__all__ = ["LoopThread"]

Result = TypeVar("Result")


class Leavable(Protocol):
    async def aclose(self) -> None: ...


class LoopThread:
    """An event loop in a thread. `run` may be called from any other thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._turn, name="potluck-relay", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for the result. When the waiting is interrupted, so is the work, to its end."""
        with self._lock:
            if self._closed:
                work.close()
                raise PotluckError("the client was closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            _end(future)
            raise

    def leave(self, stream: Leavable) -> None:
        """Nobody holds it any more; called by a finalizer, in any thread, so nothing is waited for."""
        with suppress(RuntimeError):  # the loop is closed, and all its streams with it
            self._loop.call_soon_threadsafe(self._start, stream)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        with self._lock:
            if self._closed:
                last.close()
                return
            self._closed = True
            future = asyncio.run_coroutine_threadsafe(last, self._loop)
        try:
            future.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _start(self, stream: Leavable) -> None:
        task = self._loop.create_task(stream.aclose(), name="leave a relay stream")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _turn(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()


def _end(future: Future[Any]) -> None:
    if not future.done():
        future.cancel()
