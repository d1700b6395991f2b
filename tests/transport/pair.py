"""Two drivers over a pair of sockets, after their handshake, and what each was told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from transport.driver import Driver
from transport.errors import StreamEnded
from transport.lines import Line, SocketLine
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.errors import QueueFull
from wire.frames import FrameType
from wire.limits import Limits
from wire.state import Role

STILL_RUNNING = object()


class End:
    """One side: its driver, the control frames it got, the requests that came, and how it ended."""

    def __init__(self, role: Role, limits: Limits | None = None) -> None:
        self.control: list[FrameReceived] = []
        self.requests: asyncio.Queue[tuple[Stream, FrameReceived]] = asyncio.Queue()
        self.losses: list[Any] = []
        self.at_request: Callable[[Stream, FrameReceived], None] | None = None
        self.at_control: Callable[[FrameReceived], None] | None = None
        self.greeted = asyncio.Event()
        self.driver: Any = Driver(
            role, on_control=self._control, on_lost=self.losses.append, on_request=self._request, limits=limits
        )

    async def request(self) -> Stream:
        """The next stream, its request released."""
        stream, frame = await self.requests.get()
        stream.release(frame)
        return stream

    def _control(self, frame: FrameReceived) -> None:
        self.control.append(frame)
        self.greeted.set()
        if self.at_control:
            self.at_control(frame)

    def _request(self, stream: Stream, frame: FrameReceived) -> None:
        if self.at_request:
            self.at_request(stream, frame)
        else:
            self.requests.put_nowait((stream, frame))


class Pair:
    def __init__(self, client: End, server: End) -> None:
        self.client, self.server = client, server

    async def ask(self, kind: FrameType = FrameType.GENERATE, payload: bytes = b"ask", ends: bool = True):
        """The client's and the server's end of a new stream."""
        stream = await self.client.driver.open(kind, payload, ends=ends)
        return stream, await self.server.request()

    async def greet(self) -> None:
        await self.client.driver.send_control(FrameType.HELLO, b"hello")
        await self.server.greeted.wait()
        await self.server.driver.send_control(FrameType.WELCOME, b"welcome", ends=True)
        await self.client.greeted.wait()

    async def close(self) -> None:
        for end in (self.client, self.server):
            end.driver.close()
            await end.driver.wait_closed()


async def until(true: Callable[[], object]) -> None:
    """Turns of the loop until it is true; the test's own time limit ends it when it never is."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0)


def connected() -> tuple[socket.socket, socket.socket]:
    """Two TCP sockets that are connected with each other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


@asynccontextmanager
async def pair(
    limits: Limits | None = None,
    *,
    client_limits: Limits | None = None,
    lines: tuple[Line, Line] | None = None,
    compress: bool = False,
) -> AsyncIterator[Pair]:
    client, server = End(Role.CLIENT, client_limits or limits), End(Role.SERVER, limits)
    ours, theirs = lines or tuple(SocketLine(each) for each in socket.socketpair())
    client.driver.attach(ours)
    server.driver.attach(theirs)
    both = Pair(client, server)
    try:
        await both.greet()
        if compress:
            client.driver.allow_compression()
            server.driver.allow_compression()
        yield both
    finally:
        await both.close()


async def frames(stream) -> list[bytes]:
    """What comes until the end, released."""
    found = []
    while True:
        try:
            frame = await stream.receive()
        except StreamEnded:
            return found
        found.append(bytes(frame.payload))
        stream.release(frame)


async def fill(stream) -> None:
    """Until its peer's credit is spent and nothing more may wait."""
    refused = 0
    while refused < 20:
        try:
            stream.send_nowait(FrameType.TOKENS, bytes(1 << 20))
            refused = 0
        except QueueFull:
            refused += 1
            await asyncio.sleep(0)
