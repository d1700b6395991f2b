"""Puts files on a phone by adb's sync service, and tells the size of those that are there.

Every piece must be taken within the link's patience, so that a phone that stalls is found; a refusal in mid-file is
read at once and has the phone's own words. Sizes are told modulo 2^32, as the service has it. Protocol: adb's SYNC.TXT.
"""

from __future__ import annotations

import asyncio
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from server.adb.server_link import Line, ServerLink
from server.adb.states import Transport
from server.errors import AdbError, AdbRefused, AdbServerGone

PIECE = 64 * 1024  # the most that one packet may carry
MODE = stat.S_IFREG | 0o644
SIZES = 1 << 32
_HEAD = struct.Struct("<4sI")
_STATUS = struct.Struct("<4s3I")


async def size_of(link: ServerLink, transport: Transport, path: str) -> int | None:
    """In bytes, modulo 2^32; None where there is no such file. Raises AdbError."""
    async with link.service(transport, "sync:") as line:
        line.send(_request(b"STAT", path))
        async with link.limit():
            word, mode, size, _ = _STATUS.unpack(await line.exactly(_STATUS.size))
    if word != b"STAT":
        raise AdbError(f"the phone's sync service said {word!r}")
    return int(size) if stat.S_ISREG(mode) else None


async def push(link: ServerLink, transport: Transport, here: Path, there: str, count: Callable[[int], None]) -> None:
    """`count` is told the bytes of each piece. Raises AdbError; what was written so far stays on the phone."""
    with here.open("rb") as file:
        try:
            async with link.service(transport, "sync:") as line:
                line.send(_request(b"SEND", f"{there},{MODE}"))
                answer = asyncio.ensure_future(line.exactly(_HEAD.size))
                try:
                    with suppress(ConnectionError):  # the answer has the reason
                        await _send(link, line, file, count, answer)
                        line.send(_HEAD.pack(b"DONE", int(time.time()) % SIZES))
                    await _verify(link, line, answer)
                finally:
                    answer.cancel()
                    await asyncio.gather(answer, return_exceptions=True)
        except AdbServerGone as problem:
            raise AdbError("the connection to the phone broke off in mid-file") from problem


async def _send(
    link: ServerLink, line: Line, file: BinaryIO, count: Callable[[int], None], answer: asyncio.Future[bytes]
) -> None:
    """To the end of the file, or until the phone has said something."""
    while not answer.done() and (piece := file.read(PIECE)):
        line.send(_HEAD.pack(b"DATA", len(piece)) + piece)
        async with link.limit():
            await line.drain()
        count(len(piece))


async def _verify(link: ServerLink, line: Line, answer: asyncio.Future[bytes]) -> None:
    async with link.limit():
        word, size = _HEAD.unpack(await answer)
        if word == b"FAIL":
            raise AdbRefused((await line.exactly(min(size, PIECE))).decode(errors="replace"))
    if word != b"OKAY":
        raise AdbError(f"the phone's sync service said {word!r}")


def _request(word: bytes, path: str) -> bytes:
    content = path.encode()
    return _HEAD.pack(word, len(content)) + content
