"""Names of models and files that come from the other side and may become paths in a store.

Invariants: an accepted name is relative, has no empty, hidden or upward part, means the same on every file system, and
cannot leave the folder that it is joined to. Must not know where the store is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wire.codec import Reader, Writer
from wire.errors import BadPayload, OutOfBounds
from wire.kinds import Text

__all__ = [
    "DEPTH_MOST",
    "NAME_BYTES",
    "PART_BYTES",
    "StoreName",
    "fault_of_files",
    "fault_of_name",
]

NAME_BYTES = 512
PART_BYTES = 128  # file systems allow 255; an unfinished file needs room for a suffix
DEPTH_MOST = 8

# No dot in front (hidden, `..`), none behind (Windows drops it), no colon (streams and drives), no separators.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+=-]*[A-Za-z0-9_+=-])?")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def fault_of_name(name: str) -> str | None:
    """What is wrong with `name` as a path within a store; None if nothing is."""
    parts = name.split("/", DEPTH_MOST)
    if len(name) > NAME_BYTES or len(parts) > DEPTH_MOST:
        return "the name is too long or too deep"
    for part in parts:
        if len(part) > PART_BYTES or not _PART.fullmatch(part) or _DEVICES.fullmatch(part):
            return f"{part[:PART_BYTES]!r} cannot be part of a name"
    return None


def fault_of_files(names: Iterable[str]) -> str | None:
    """What is wrong with `names` as the files of one model: none twice (whatever the case), none inside another."""
    taken: set[str] = set()
    folders: set[str] = set()
    for name in names:
        lowered = name.lower()
        if lowered in taken:
            return f"{name!r} stands twice"
        taken.add(lowered)
        parts = lowered.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    both = sorted(taken & folders)
    return f"{both[0]!r} is a file and a folder" if both else None


@dataclass(frozen=True, slots=True)
class StoreName:
    """Text that `fault_of_name` has nothing against."""

    def put(self, writer: Writer, value: str) -> None:
        fault = fault_of_name(value)
        if fault:
            raise OutOfBounds(fault)
        _TEXT.put(writer, value)

    def take(self, reader: Reader) -> str:
        value = _TEXT.take(reader)
        fault = fault_of_name(value)
        if fault:
            raise BadPayload(fault)
        return value

    def describe(self) -> str:
        return f"store name, 1 to {NAME_BYTES} bytes"


_TEXT = Text(NAME_BYTES, least=1)
