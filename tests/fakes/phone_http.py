"""A small HTTP/1.1 server on `asyncio.Protocol` and httptools, with every byte in our hands so that faults can be
made of them.

Framing follows Go's server: bodies over 2,048 bytes and streams are chunked, shorter ones have a length; keep-alive
unless the client says otherwise; the end of the client's side ends the request. Nothing is written before the
handler writes. This file knows nothing of Ollama, models or faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

# Go's server switches to chunks when a body outgrows its write buffer.
LONGEST_PLAIN_BODY = 2048
# A client that sends more than this is not a test but an accident.
LARGEST_BODY = 64 * 1024 * 1024
# Requests that a client may send ahead on one connection.
LONGEST_PIPELINE = 64
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_LINGER_ZERO = struct.pack("ii", 1, 0)

Handler = Callable[["Exchange"], Awaitable[None]]


@dataclass(slots=True)
class Request:
    method: str = ""
    target: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    keep_alive: bool = True

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])


class _Date:
    """The Date header, made once a second."""

    second = 0
    text = ""

    @classmethod
    def now(cls) -> str:
        second = int(time.time())
        if second != cls.second:
            cls.second, cls.text = second, formatdate(second, usegmt=True)
        return cls.text


class Exchange:
    """One request and the answer to it. Methods only queue bytes; `flush` waits where waiting is due."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_corked",
        "_held",
        "_pending_head",
        "begun",
        "ended",
        "extra",
        "request",
        "trickle",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self.request = request
        self.extra: Mapping[str, str] = {}
        self.begun = False
        self.ended = False
        self.trickle: float | None = None  # seconds between two bytes
        self._pending_head = b""
        self._chunked = False
        self._held = bytearray()
        self._corked: list[bytes] | None = None

    def head(self, status: int, content_type: str, framing: str, extra: Mapping[str, str]) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in {**self.extra, **extra}.items()]
        if content_type:
            lines.append(f"Content-Type: {content_type}")
        lines.append(f"Date: {_Date.now()}")
        if framing:
            lines.append(framing)
        if not self.request.keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def whole(
        self,
        status: int,
        body: bytes,
        content_type: str,
        extra: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> None:
        """A complete answer; framed as Go would."""
        if (chunked or len(body) > LONGEST_PLAIN_BODY) and self.request.method != "HEAD":
            self.begin(status, content_type, extra)
            self.chunk(body)
            self.end()
            return
        head = self.head(status, content_type, f"Content-Length: {len(body)}", extra or {})
        self.begun = self.ended = True
        self._put(head if self.request.method == "HEAD" else head + body)

    def begin(self, status: int, content_type: str, extra: Mapping[str, str] | None = None) -> None:
        """Open a chunked answer. The head goes out with the first chunk, or with `send_head`."""
        self._pending_head = self.head(status, content_type, "Transfer-Encoding: chunked", extra or {})
        self._chunked = True
        self.begun = True

    def send_head(self) -> None:
        if self._pending_head:
            head, self._pending_head = self._pending_head, b""
            self._put(head)

    def chunk(self, data: bytes) -> None:
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        if self._pending_head:
            framed, self._pending_head = self._pending_head + framed, b""
        self._put(framed)

    def end(self) -> None:
        """End a chunked answer well."""
        self.send_head()
        self._put(b"0\r\n\r\n")
        self.ended = True
        self.uncork()

    def cork(self) -> None:
        """Gather what is written until `uncork`: one system call instead of many."""
        if self._corked is None:
            self._corked = []

    def uncork(self) -> None:
        corked, self._corked = self._corked, None
        if corked:
            self._connection.write(b"".join(corked))

    def raw(self, data: bytes) -> None:
        """Bytes outside any framing."""
        self._put(data)

    async def flush(self) -> None:
        """Wait until the client takes more; in a trickle, let the bytes out one at a time."""
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            for index in range(len(held)):
                self._connection.write(held[index : index + 1])
                await asyncio.sleep(self.trickle or 0.0)
        if not self._connection.can_write.is_set():
            await self._connection.can_write.wait()

    @property
    def must_flush(self) -> bool:
        return bool(self._held) or not self._connection.can_write.is_set()

    def cut(self) -> None:
        """Close the connection where it stands, as a server that dies."""
        self.send_head()
        self.ended = True
        self.uncork()
        self._connection.close()

    async def reset(self) -> None:
        """RST. What was written before gets a moment to arrive, since a reset overtakes it otherwise."""
        self.uncork()
        if self.begun:
            await asyncio.sleep(0.01)
        self.ended = True
        self._connection.reset()

    def _put(self, data: bytes) -> None:
        if self.trickle is not None:
            self._held += data
        elif self._corked is not None:
            self._corked.append(data)
        else:
            self._connection.write(data)


class Connection(asyncio.Protocol):
    """One client connection: parses requests, serves them in turn, cancels the running one when the client leaves."""

    def __init__(self, handler: Handler, connections: set[Connection], refuses: Callable[[], bool]) -> None:
        self._handler = handler
        self._connections = connections
        self._refuses = refuses
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._request = Request()
        self._body: list[bytes] = []
        self._body_size = 0
        self._queue: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.closed = asyncio.Event()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)
        self._parser = httptools.HttpRequestParser(self)
        if self._refuses():
            self.reset()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserError:
            self.write(
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
            )
            self.write(b"400 Bad Request")
            self.close()

    def eof_received(self) -> bool:
        return False  # Go takes the end of the client's side for its leaving

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._queue.clear()
        self.closed.set()
        self.can_write.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._request = Request()
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._request.method = self._parser.get_method().decode()
        self._request.keep_alive = self._parser.should_keep_alive()
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > LARGEST_BODY:
            self.close()
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._request.body = b"".join(self._body)
        if len(self._queue) >= LONGEST_PIPELINE:
            self.close()
            return
        self._queue.append(self._request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # for the exchange

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with RST: linger zero, set on a duplicate since the transport keeps its own descriptor to itself."""
        transport = self._transport
        if transport is None:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as duplicate,
        ):
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()

    async def stop(self) -> None:
        """Abort and wait until the running request has let go."""
        task = self._task
        if self._transport is not None:
            self._transport.abort()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.closed.wait()

    async def _serve(self) -> None:
        try:
            while self._queue and self._transport is not None:
                exchange = Exchange(self, self._queue.popleft())
                await self._handler(exchange)
                if exchange.must_flush:
                    await exchange.flush()
                if not exchange.ended or not exchange.request.keep_alive:
                    self.close()
                    return
        finally:
            self._task = None
