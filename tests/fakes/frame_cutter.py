"""A relay node behind a door that is slammed after so many TOKENS: as if the node had died at that very moment.

Frames pass as they are. Behind the last one that passes every connection is cut and nobody listens any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wire.frames import FrameType, unpack_header

HEADER_BYTES = 16


class FrameCutter:
    """`passed` counts the TOKENS; `host` and `port` are where to knock."""

    host = "127.0.0.1"

    def __init__(self, port_behind: int, tokens: int | None = None) -> None:
        self.port = 0
        self.passed = 0
        self.tokens = tokens  # after so many the door is shut; None: never
        self._behind = port_behind
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.shut()
        while self._writers:  # noqa: ASYNC110 - their tasks are on their way out
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node_reader, node_writer = await asyncio.open_connection(self.host, self._behind)
        pair = {writer, node_writer}
        self._writers |= pair
        asking = asyncio.create_task(self._pass_on(reader, node_writer))
        try:
            await self._pass_frames(node_reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one of the two has left
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for one in pair:
                one.transport.abort()
            self._writers -= pair

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def _pass_frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(HEADER_BYTES)
            header = unpack_header(head)
            if header.type in (FrameType.TOKENS, FrameType.DONE) and self.passed == self.tokens:
                self.shut()
                return
            writer.write(head + await reader.readexactly(header.size))
            await writer.drain()
            self.passed += header.type is FrameType.TOKENS


@asynccontextmanager
async def frame_cutter(port_behind: int, tokens: int | None = None) -> AsyncIterator[FrameCutter]:
    cutter = FrameCutter(port_behind, tokens)
    await cutter.open()
    try:
        yield cutter
    finally:
        await cutter.close()
