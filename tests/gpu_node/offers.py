"""Offers of models for tests of the push: real files of the tiny model, cut into chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from wire.messages_work import Chunk, Push, PushFile

Files = Mapping[str, bytes]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def offer_of(model: str, files: Files) -> Push:
    offered = (PushFile(name, len(data), hashlib.sha256(data).digest()) for name, data in files.items())
    return Push(model, tuple(offered))


def chunk(file: int, offset: int, data: bytes) -> Chunk:
    return Chunk(file, offset, hashlib.sha256(data).digest(), data)


def chunks_of(files: Files, held: tuple[int, ...] = (), size: int = 1 << 16) -> Iterator[Chunk]:
    """What is missing, file after file."""
    for number, data in enumerate(files.values()):
        for offset in range(held[number] if held else 0, len(data), size):
            yield chunk(number, offset, data[offset : offset + size])
