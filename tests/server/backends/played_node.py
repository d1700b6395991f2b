"""A node that answers with bytes written down before: recordings of real servers, or whatever a test wants said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.nodes import NodeId, NodeSpec

RECORDINGS = Path(__file__).parents[2] / "recordings"


@dataclass(frozen=True)
class Play:
    """What is sent for one request, piece by piece, and what happens then."""

    pieces: Sequence[bytes]
    then: str = "close"  # close, reset, stay (the connection is kept), hang (kept, but the answer is not over)
    pause: float = 0.0


@dataclass
class PlayedNode:
    port: int = 0
    plays: list[Play] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0

    def spec(self, **fields: Any) -> NodeSpec:
        return NodeSpec(NodeId("n"), "n", fields.pop("kind", "ollama"), "127.0.0.1", self.port, **fields)

    def body(self, index: int = -1) -> Any:
        return json.loads(self.requests[index].partition(b"\r\n\r\n")[2])

    def head(self, index: int = -1) -> str:
        return self.requests[index].partition(b"\r\n\r\n")[0].decode()

    async def until_closed(self) -> None:
        """Wait until every client has left."""
        async with asyncio.timeout(60):
            while self.open:  # noqa: ASYNC110  # the other side of a socket has no event to wait for
                await asyncio.sleep(0.001)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                0,
            )
            self.requests.append(head + await reader.readexactly(length))
            play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
            for piece in play.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(play.pause)
            if play.then == "reset":
                writer.transport.abort()
            if play.then == "hang":
                await reader.read()
            if play.then != "stay":
                return


@asynccontextmanager
async def played(*plays: Play) -> AsyncIterator[PlayedNode]:
    """A node that plays one after the other, the last one again and again."""
    node = PlayedNode(plays=list(plays))
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(node.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    node.port = server.sockets[0].getsockname()[1]
    try:
        yield node
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def whole(status: int, body: bytes, *headers: str) -> bytes:
    """An answer with a length."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def streamed(*chunks: bytes, ended: bool = True) -> list[bytes]:
    """A chunked answer, one piece per chunk."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), *([b"0\r\n\r\n"] if ended else [])]


def recording(version: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RECORDINGS / version / f"{name}.json").read_text())
    return loaded


def recorded(version: str, name: str) -> Play:
    """A recorded answer, byte for byte but for the times."""
    return play_of(recording(version, name)["response"])


def play_of(response: dict[str, Any]) -> Play:
    headers = "".join(f"{key}: {value}\r\n" for key, value in response["headers"].items())
    head = f"{response['status_line']}\r\n{headers}\r\n".encode()
    if "chunks" not in response:
        return Play([head, response.get("body", "").encode()])
    chunks = [chunk["text"].encode() for chunk in response["chunks"]]
    return Play([head, *streamed(*chunks, ended=response["last_chunk_seen"])[1:]])


def bodies(version: str) -> list[str]:
    return sorted(path.stem for path in (RECORDINGS / version).glob("*.json"))
