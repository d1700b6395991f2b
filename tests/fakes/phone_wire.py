"""An HTTP client that hides nothing: what a phone sent, byte for byte, and how the connection ended. For tests of
fakes.

It sends one request on a connection of its own and reads to the end; nothing is repaired, nothing is raised for a
bad answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(slots=True)
class WireAnswer:
    raw: bytes = b""
    ended: str = "closed"  # or "reset"
    status_line: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    last_chunk_seen: bool | None = None  # None: the body is not chunked

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1]) if self.status_line else 0

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [orjson.loads(line) for line in self.body.splitlines() if line]


async def ask(
    port: int,
    method: str = "GET",
    path: str = "/",
    body: Any = None,
    *,
    host: str | None = None,
    headers: dict[str, str] | None = None,
    leave_after: int | None = None,
) -> WireAnswer:
    """One request. `body` is sent as it is if it is bytes, else as JSON; `leave_after` closes after that many bytes."""
    data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + data
    answer = WireAnswer()
    received = bytearray()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        while leave_after is None or len(received) < leave_after:
            part = await reader.read(65_536)
            if not part:
                break
            received += part
    except ConnectionError:
        answer.ended = "reset"
    finally:
        if writer is not None:
            writer.close()
            await _closed(writer)
    answer.raw = bytes(received)
    _parse(answer, has_body=method != "HEAD")
    return answer


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionError:
        return


def _parse(answer: WireAnswer, *, has_body: bool) -> None:
    head, found, rest = answer.raw.partition(b"\r\n\r\n")
    if not found or not head.startswith(b"HTTP/1.1 "):
        return
    lines = head.decode("latin-1").split("\r\n")
    answer.status_line = lines[0]
    answer.headers = {name: value for name, _, value in (line.partition(": ") for line in lines[1:])}
    if answer.headers.get("Transfer-Encoding") != "chunked":
        answer.body = rest if has_body else b""
        return
    answer.last_chunk_seen = False
    while rest:
        size_line, found, rest = rest.partition(b"\r\n")
        try:
            size = int(size_line, 16)
        except ValueError:
            return
        if size == 0:
            answer.last_chunk_seen = rest == b"\r\n"
            return
        if not found or len(rest) < size:
            return
        answer.chunks.append(rest[:size])
        answer.body += rest[:size]
        rest = rest[size + 2 :]
