"""The last steps of a connection: last words, the peer's own end, the socket closed, all of it within a time.

Invariants: a socket is not closed while the peer may still read our last words, for what it sends meanwhile would cut
them off; after CLOSING_SECONDS it is closed all the same; no timer outlives `shut`. Must not know frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from transport.lines import Line

__all__ = ["CLOSING_SECONDS", "Ending"]

# How long a peer may take for our last words and its own end before the socket is closed on it.
CLOSING_SECONDS = 2.0


class Ending:
    """`on_late` is called when the time is over, before the socket is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_late: Callable[[], None]) -> None:
        self.line: Line | None = None
        self.is_ending = self.is_closed = self._peer_ended = False
        self._loop, self._on_late = loop, on_late
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = loop.create_future()

    def limit(self) -> None:
        """From now on it must not take long."""
        if self._timer is None and not self.is_closed:
            self._timer = self._loop.call_later(CLOSING_SECONDS, self._run_out)

    def all_written(self) -> None:
        """Our last words are out."""
        assert self.line is not None
        if self.is_ending:
            return
        self.is_ending = True
        if self._peer_ended:
            self.shut()
        else:
            self.line.end()

    def peer_ended(self) -> None:
        """The peer sends no more."""
        self._peer_ended = True
        if self.is_ending:
            self.shut()

    def shut(self) -> None:
        """Closes now. Harmless when closed."""
        if self.is_closed:
            return
        self.is_closed = True
        self._closed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self.line is not None:
            self.line.close()

    async def wait_closed(self) -> None:
        await asyncio.shield(self._closed)

    def _run_out(self) -> None:
        self._on_late()
        self.shut()
