"""A way to a node that is cut after so many bytes, in either direction, again and again, each time at another byte.

What was on its way beyond the cut is lost, as with a cable that is pulled: one side may have said what the other has
never heard. Each connection takes the next of `cuts`; behind the last one nothing is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Bytes of a connection that still pass, to the node and from it; the first that is used up ends both."""

    up: int
    down: int


class CuttingLine:
    """`connections` that came so far; `port` is where to knock."""

    def __init__(self, port_behind: int, cuts: Iterable[Cut]) -> None:
        self.port = self.connections = 0
        self._behind, self._cuts = port_behind, iter(cuts)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        cut = next(self._cuts, None)
        task = asyncio.create_task(self._join(reader, writer, cut), name="a line that is cut")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None) -> None:
        writers, ways = [writer], []
        try:
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._behind)
            writers.append(node_writer)
            ways.append(asyncio.create_task(carry(reader, node_writer, cut.up if cut else None)))
            ways.append(asyncio.create_task(carry(node_reader, writer, cut.down if cut else None)))
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for each in writers:
                each.transport.abort()
            await asyncio.gather(*ways, *(each.wait_closed() for each in writers), return_exceptions=True)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
    """Returns at the cut, or when one of the two has left."""
    while left is None or left > 0:
        try:
            data = await reader.read(CHUNK if left is None else min(CHUNK, left))
        except ConnectionError:
            return
        if not data:
            return
        writer.write(data)
        if left is not None:
            left -= len(data)


@asynccontextmanager
async def cutting_line(port_behind: int, cuts: Iterable[Cut]) -> AsyncIterator[CuttingLine]:
    line = CuttingLine(port_behind, cuts)
    await line.open()
    try:
        yield line
    finally:
        await line.close()
