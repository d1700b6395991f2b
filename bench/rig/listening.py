"""A listener for very many streams: keeps the bytes and the times, and reads them when the run is over.

Sends one request on a raw connection and notes when each piece came. Costs so little that a thousand of them beside
the phones leave the machine to what is measured.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import orjson

_END = b"0\r\n\r\n"


@dataclass(slots=True)
class Heard:
    """One streamed answer as bytes, and when its first and last pieces came."""

    status: int = 0
    body: bytes = b""
    asked: float = 0.0
    first: float = 0.0
    last: float = 0.0
    broken: str = ""


class Listener(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._done: asyncio.Future[None] | None = None
        self._heard = Heard()
        self._now = asyncio.get_running_loop().time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done is not None and not self._done.done():
            self._heard.broken = f"the connection was closed: {exc}"
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        heard = self._heard
        heard.last = self._now()
        if not self._pieces:
            heard.first = heard.last
        self._pieces.append(data)
        over = data.endswith(_END) or (self._pieces[0][9:12] != b"200" and is_whole(b"".join(self._pieces)))
        if over and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def ask(self, path: str, body: dict[str, object]) -> Heard:
        """One request to the end of its answer."""
        if self._transport is None:
            return Heard(broken="no connection")
        encoded = orjson.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._heard, self._pieces = Heard(asked=self._now()), []
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(f"{head}Content-Length: {len(encoded)}\r\n\r\n".encode() + encoded)
        await self._done
        heard, self._done = self._heard, None
        unpack(heard, b"".join(self._pieces))
        return heard

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def is_whole(data: bytes) -> bool:
    """Is this an answer with a length (an error, mostly), all of it?"""
    head, found, body = data.partition(b"\r\n\r\n")
    _, named, length = head.lower().partition(b"content-length:")
    return bool(found and named) and len(body) >= int(length.partition(b"\r\n")[0])


@dataclass(slots=True)
class _Chunks:
    data: bytes
    at: int = 0
    parts: list[bytes] = field(default_factory=list)

    def next(self) -> bool:
        """Read one chunk; False at the last one. Raises ValueError where the framing is wrong."""
        line = self.data.index(b"\r\n", self.at)
        size = int(self.data[self.at : line], 16)
        begin = line + 2
        if self.data[begin + size : begin + size + 2] != b"\r\n":
            raise ValueError("a chunk that is cut")
        self.parts.append(self.data[begin : begin + size])
        self.at = begin + size + 2
        return size > 0


def unpack(heard: Heard, data: bytes) -> None:
    """Take head and chunks apart; what is wrong with them goes into `broken`."""
    try:
        end = data.index(b"\r\n\r\n")
        heard.status = int(data[9:12])
        chunks = _Chunks(data, end + 4)
        if b"transfer-encoding: chunked" not in data[:end].lower():
            heard.body = data[end + 4 :]
            return
        while chunks.next():
            pass
        heard.body = b"".join(chunks.parts)
    except ValueError as problem:
        heard.broken = heard.broken or f"cannot be read: {problem}"
