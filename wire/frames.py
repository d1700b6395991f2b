"""The 16-byte header in front of every payload, and the numbers of the message types.

     0               1               2               3
    +---------------+-------+-------+-------------------------------+
    | type          |version| flags | stream id                     |
    +---------------+-------+-------+-------------------------------+
    | payload size                                                  |
    +---------------------------------------------------------------+
    | sequence: counts the frames of this direction, from 0         |
    +---------------------------------------------------------------+
    | CRC-32 of the 12 bytes above, then of the payload             |
    +---------------------------------------------------------------+

Big-endian; every field is aligned. Nothing here allocates for a payload or knows what one means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Protocol

from wire.errors import MalformedFrame, OutOfBounds, TooLarge, UnknownVersion
from wire.limits import LARGEST_PAYLOAD, LARGEST_STREAM_ID

__all__ = [
    "HEADER_SIZE",
    "VERSION",
    "Buffer",
    "Checksum",
    "Flags",
    "FrameType",
    "Header",
    "pack_header",
    "unpack_header",
]

VERSION = 1
HEADER_SIZE = 16
SEQUENCE_MASK = 0xFFFF_FFFF

Buffer = bytes | bytearray | memoryview

_FIELDS = struct.Struct(">BBHII")
_CHECKSUM = struct.Struct(">I")


class FrameType(IntEnum):
    """What a payload is. The numbers are grouped by the upper four bits and never given to something else."""

    HELLO = 0x01
    WELCOME = 0x02
    PING = 0x03
    PONG = 0x04
    CREDIT = 0x05
    CANCEL = 0x06
    ERROR = 0x07
    GOODBYE = 0x08
    LOAD = 0x10
    PROGRESS = 0x11
    LOADED = 0x12
    UNLOAD = 0x13
    PUSH = 0x14
    GENERATE = 0x20
    TOKENS = 0x21
    DONE = 0x22
    EMBED = 0x23
    VECTORS = 0x24
    ALLOC = 0x30
    ALLOCATED = 0x31
    FREE = 0x32
    WRITE = 0x33
    READ = 0x34
    DATA = 0x35
    ACK = 0x36
    RUN = 0x40
    STATS = 0x50


class Flags(IntFlag):
    """The lower four bits of the second byte; 4 and 8 are reserved and must be 0."""

    NONE = 0
    END = 1  # the sender's half of the stream ends with this frame
    COMPRESSED = 2  # the payload is its size as it was, 4 bytes, then an LZ4 block of it


# As plain numbers: operators of a Flag take as long as all the rest of a header.
_END, _COMPRESSED = int(Flags.END), int(Flags.COMPRESSED)


class Checksum(Protocol):
    """CRC-32 as `zlib.crc32` computes it (polynomial 0x04C11DB7, reflected), going on from `value`."""

    def __call__(self, data: Buffer, value: int = ..., /) -> int: ...


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one frame as its fields; `checksum` is the one it came with."""

    type: FrameType
    flags: Flags
    stream_id: int
    size: int
    sequence: int
    checksum: int = 0

    @property
    def ends(self) -> bool:
        return int(self.flags) & _END != 0

    @property
    def compressed(self) -> bool:
        return int(self.flags) & _COMPRESSED != 0


_TYPES = {int(known): known for known in FrameType}
_FLAGS = tuple(Flags(bits) for bits in range(4))


def pack_header(header: Header, payload: Sequence[Buffer], checksum: Checksum) -> bytes:
    """The 16 bytes of `header`; its own checksum is computed from `payload`, whose pieces must add up to `size`."""
    if not 0 <= header.size <= LARGEST_PAYLOAD or not 0 <= header.stream_id <= LARGEST_STREAM_ID:
        raise OutOfBounds(f"no frame has {header.size} bytes on stream {header.stream_id}")
    fields = _FIELDS.pack(
        header.type, VERSION << 4 | int(header.flags), header.stream_id, header.size, header.sequence & SEQUENCE_MASK
    )
    return fields + _CHECKSUM.pack(checksum_of(fields, payload, checksum))


def unpack_header(data: Buffer) -> Header:
    """The header in the first 16 bytes of `data`. Raises RemoteErrors for what no frame may say; the checksum is read,
    not checked, for the payload is not here yet."""
    kind, version_and_flags, stream_id, size, sequence = _FIELDS.unpack_from(data)
    if version_and_flags >> 4 != VERSION:
        raise UnknownVersion(f"the frame is of version {version_and_flags >> 4}, this side speaks {VERSION}")
    known = _TYPES.get(kind)
    if known is None:
        raise MalformedFrame(f"no frame has the type {kind:#04x}")
    bits = version_and_flags & 0x0F
    if bits >= len(_FLAGS):
        raise MalformedFrame(f"reserved flags are set: {bits:#x}")
    if size > LARGEST_PAYLOAD:
        raise TooLarge(f"a payload of {size} bytes; {LARGEST_PAYLOAD} is the most")
    return Header(known, _FLAGS[bits], stream_id, size, sequence, _CHECKSUM.unpack_from(data, 12)[0])


def checksum_of(fields: Buffer, payload: Sequence[Buffer], checksum: Checksum) -> int:
    """CRC-32 over the first 12 bytes of the header and then the payload's pieces."""
    value = checksum(memoryview(fields)[:12], 0)
    for piece in payload:
        value = checksum(piece, value)
    return value
