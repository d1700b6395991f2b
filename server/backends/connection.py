"""One kept TCP connection to a node and the HTTP/1.1 exchange on it: bytes to a status, headers and a body.

Written for relaying many small streams: llhttp parses, one timer per connection is moved lazily instead of one per
read, and a reader is woken once per network read; a general client costs twice the CPU of a whole request here. Raises
only `NodeError`s. Bounds the header block and what it buffers. Knows nothing of JSON, of models or of who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from server.errors import NodeBroken, NodeError, NodeStalled, NodeUnreachable

MAX_HEAD_BYTES = 64 * 1024  # llhttp bounds neither one header nor their number
PAUSE_ABOVE_BYTES = 256 * 1024  # a reader that is slower than the node makes the node wait, not our memory grow
LOOSE_TIMER_SECONDS = 0.001  # a timer that fires this much early is simply set again

Watcher = Callable[["Connection"], None]


class Connection(asyncio.Protocol):
    """One exchange at a time: `begin`, then `wait_for_head`, then `read` until it gives b""."""

    def __init__(self, address: str, on_complete: Watcher, on_lost: Watcher) -> None:
        self.address = address
        self.idle_since = 0.0  # its pool's note
        self._on_complete = on_complete
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._phase = "connect"
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.answered = False  # has any byte of this answer come?
        self.complete = False
        self._head_complete = False
        self._head_bytes = 0
        self._keep_alive = False
        self._until_close = False
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._error: NodeError | None = None

    # -- the exchange ------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Is the exchange over and the connection good for another one?"""
        return self.complete and self._keep_alive and self._error is None and self.usable

    def begin(self, request: bytes) -> None:
        """Send a whole request. The connection must be new or `reusable`."""
        self._clear()
        if self._transport is None or self._transport.is_closing():
            self._error = NodeUnreachable(f"{self.address} closed the connection")
            return
        self._transport.write(request)

    def expect(self, phase: str, seconds: float, end: float) -> None:
        """From now on, `seconds` of waiting raise NodeStalled of this phase; `end` (loop clock) ends all phases."""
        self._deadline = self._loop.time() + seconds
        self._phase = phase
        if self._deadline > end:
            self._phase, self._deadline = "total", end

    async def wait_for_head(self) -> None:
        while not self._head_complete:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """All body bytes that have come since; b"" at the well-marked end of the body."""
        while True:
            if self._pieces:
                return self._take()
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()

    async def read_all(self, limit_bytes: int) -> bytes:
        pieces, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > limit_bytes:
                raise NodeBroken(f"{self.address} answered with more than {limit_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def abort(self) -> None:
        """Close at once: the node sees its client leave and stops its work."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def rest(self) -> None:
        """Nobody reads any more: no timer may fire."""
        self._stop_timer()

    def _take(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        if self._timer is None or self._deadline < self._timer_at:
            self._set_timer()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _set_timer(self) -> None:
        self._stop_timer()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        """The deadline has usually moved on since the timer was set; and time counts only while somebody waits."""
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() + LOOSE_TIMER_SECONDS < self._deadline:
            self._set_timer()
            return
        self._fail(NodeStalled(f"{self.address} was silent for too long ({self._phase})", self._phase))

    def _fail(self, error: NodeError) -> None:
        if self._error is None and not self.complete:
            self._error = error
        self.abort()
        self._wake()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self.complete or self._parser is None:  # nobody asked for this
            self.abort()
            return
        self.answered = True
        if not self._head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            if not self.complete:
                self._fail(NodeBroken(f"{self.address} does not speak HTTP as it should: {problem}"))
            return
        if not self._head_complete and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(NodeBroken(f"{self.address} sent more than {MAX_HEAD_BYTES} bytes of headers"))
        elif self._buffered > PAUSE_ABOVE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()
        if self.complete:
            self._on_complete(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self._stop_timer()
        self._transport = self._parser = None
        if self._error is None and not self.complete:
            if self._until_close and problem is None:
                self.complete = True
            else:
                self._error = self._loss(problem)
        self._wake()
        self._on_lost(self)

    def _loss(self, problem: Exception | None) -> NodeError:
        how = str(problem) if problem is not None else "closed"
        if self._head_complete:
            error: NodeError = NodeBroken(f"{self.address} cut its answer short (connection {how})")
        else:
            error = NodeUnreachable(f"{self.address} dropped the connection before it answered ({how})")
        error.__cause__ = problem
        return error

    # -- httptools callbacks -----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # a trailer after the body tells us nothing
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like: the answer is still to come
            self.headers = {}
            return
        self.status = status
        self._head_complete = True
        self._keep_alive = self._parser.should_keep_alive()
        headers = self.headers
        self._until_close = b"content-length" not in headers and b"transfer-encoding" not in headers

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._head_complete:
            self.complete = True
            self._until_close = False
