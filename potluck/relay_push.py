"""A model's files on their way to a node's store.

Invariants: what the node holds already is not sent again, also after a cut; every chunk and every file has its digest;
files are read in threads, one chunk ahead of the line. A file that changes meanwhile ends the push, since its digest
was promised. Knows no caller's wishes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transport.errors import ConnectionLost, ProtocolBroken, Refused
from transport.link import Link
from transport.pauses import Patience
from transport.session import RelaySession
from transport.streams import Stream
from wire.errors import BadPayload, OutOfBounds
from wire.frames import FrameType
from wire.limits import LARGEST_PAYLOAD
from wire.messages import Message, encode_chunk, encode_message
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Chunk, Progress, Push, PushFile

from .errors import Misuse
from .relay_answers import LoadProgress
from .relay_ending import ended

__all__ = ["Offer", "offer_of", "push"]

CHUNK_BYTES = LARGEST_PAYLOAD - 128  # a frame, less what a chunk says of itself
# Chunks whose acknowledgement has not come: enough for a long line, few enough to hear soon of a full disk.
UNHEARD = 8
# When the node says that files came out wrong they come again so often; then something is wrong with them here.
REPEATS = 1

Told = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True)
class Offer:
    message: Push
    paths: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.message.files)


async def offer_of(model: str, source: Path, told: Told | None) -> Offer:
    """All files below `source`, or the one file that it is, with their digests. Hidden ones stay here.

    Raises Misuse for what is no model's folder or has names that no store takes.
    """
    root, paths = await asyncio.to_thread(_files, source)
    total, done = sum(path.stat().st_size for path in paths), 0
    files = []
    for path in paths:
        digest, size = await asyncio.to_thread(_digest, path)
        done += size
        if told is not None:
            told(LoadProgress("digesting", done, total))
        files.append((path.relative_to(root).as_posix(), size, digest))
    try:
        message = Push(model, tuple(PushFile(*file) for file in files))
        encode_message(message)
        return Offer(message, tuple(paths))
    except OutOfBounds as error:
        raise Misuse(f"{source} cannot be pushed: {error}") from error


async def push(session: RelaySession, offer: Offer, told: Told | None) -> None:
    """Until the node has all of it. Raises Refused, Misuse for a file that has changed, and what `link` raises.

    A cut is mended as long as chunks arrive between cuts, and for the session's grace where none does.
    """
    repeats, patience = 0, None
    while True:
        link = await session.link()
        patience = patience or session.patience()
        try:
            return await _push_once(link, offer, told, partial(_landed, session, patience))
        except ProtocolBroken:
            raise
        except ConnectionLost:
            if session.closed or patience.is_over(session.now()):
                raise
        except Refused as error:
            if error.code is not ErrorCode.DIGEST_MISMATCH or repeats == REPEATS:
                raise
            repeats += 1


def _landed(session: RelaySession, patience: Patience) -> None:
    """Something has come of this connection."""
    patience.went_on()
    session.went_on()


async def _push_once(link: Link, offer: Offer, told: Told | None, landed: Callable[[], None]) -> None:
    stream = await link.open(offer.message, ends=False)
    with ended(stream):
        talk = _Talk(stream, offer, told, landed)
        held = (await talk.ack()).held
        if len(held) != len(offer.paths) or any(
            size > file.size for size, file in zip(held, offer.message.files, strict=True)
        ):
            raise BadPayload("the node holds more than was offered")
        talk.begin(sum(held))
        for number, start in enumerate(held):
            await talk.send_file(number, start)
        await stream.send(FrameType.DATA, ends=True)
        await talk.finish()


class _Talk:
    """What is sent, and what the node has said to it."""

    def __init__(self, stream: Stream, offer: Offer, told: Told | None, landed: Callable[[], None]) -> None:
        """`landed` is called for every chunk that the node has written down."""
        self._stream, self._offer, self._told, self._landed = stream, offer, told, landed
        self._unheard = self._done = 0

    def begin(self, held_bytes: int) -> None:
        self._done = held_bytes
        self._tell("sending")

    async def ack(self) -> Ack:
        while True:
            message: Message = await self._stream.message()
            if isinstance(message, Ack):
                return message
            if isinstance(message, Progress) and self._told is not None:
                self._told(LoadProgress.of(message))

    async def send_file(self, number: int, start: int) -> None:
        path, size = self._offer.paths[number], self._offer.message.files[number].size
        while start < size:
            data = await asyncio.to_thread(_read, path, start, min(CHUNK_BYTES, size - start))
            chunk = Chunk(number, start, hashlib.sha256(data).digest(), data)
            if self._unheard == UNHEARD:
                await self._heard()
            await self._stream.send(FrameType.DATA, *encode_chunk(chunk))
            self._unheard += 1
            start += len(data)
            self._done += len(data)
            self._tell("sending")

    async def finish(self) -> None:
        while self._unheard:
            await self._heard()
        await self.ack()

    async def _heard(self) -> None:
        await self.ack()
        self._landed()
        self._unheard -= 1

    def _tell(self, phase: str) -> None:
        if self._told is not None:
            self._told(LoadProgress(phase, self._done, self._offer.total_bytes))


def _files(source: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and what is in it."""
    if source.is_file():
        return source.parent, [source]
    found = sorted(path for path in source.rglob("*") if path.is_file())
    kept = [path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not kept:
        raise Misuse(f"there are no files at {source}")
    return source, kept


def _digest(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return digest, file.tell()


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        raise Misuse(f"{path} became shorter while it was being pushed")
    return data
