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
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from functools import partial
from typing import Any, NamedTuple, Protocol

from wire.errors import MalformedFrame, OutOfBounds, RemoteError, TooLarge, UnknownVersion
from wire.limits import LARGEST_PAYLOAD, LARGEST_STREAM_ID

__all__ = [
    "CHECKED_SIZE",
    "HEADER_SIZE",
    "PLAIN",
    "VERSION",
    "Buffer",
    "Checksum",
    "Flags",
    "FrameType",
    "Header",
    "checksum_of",
    "make_header",
    "pack_header",
    "pack_plain",
    "unpack_fields",
    "unpack_header",
]

VERSION = 1
HEADER_SIZE = 16
SEQUENCE_MASK = 0xFFFF_FFFF

Buffer = bytes | bytearray | memoryview

_FIELDS = struct.Struct(">BBHII")
_CHECKSUM = struct.Struct(">I")
_WHOLE = struct.Struct(">BBHIII")
# The fields of a header as they are, and the checksum.
unpack_fields = _WHOLE.unpack_from
# The second byte of a frame without flags.
PLAIN = VERSION << 4
# The checksum is over the header's first so many bytes, and the payload.
CHECKED_SIZE = 12


class FrameType(IntEnum):
    """What a payload is. The numbers are grouped by the upper four bits and never given to something else."""

    # That of an Enum is made of its name in Python, and every frame is looked up in tables by its type.
    __hash__ = int.__hash__

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

    __hash__ = int.__hash__

    NONE = 0
    END = 1  # the sender's half of the stream ends with this frame
    COMPRESSED = 2  # the payload is its size as it was, 4 bytes, then an LZ4 block of it


# As plain numbers: operators of a Flag take as long as all the rest of a header.
_END, _COMPRESSED = int(Flags.END), int(Flags.COMPRESSED)


class Checksum(Protocol):
    """CRC-32 as `zlib.crc32` computes it (polynomial 0x04C11DB7, reflected), going on from `value`."""

    def __call__(self, data: Buffer, value: int = ..., /) -> int: ...


class Header(NamedTuple):
    """The header of one frame as its fields; `checksum` is the one it came with. A tuple, for one is made per frame."""

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


# What a NamedTuple does behind its own `__new__`, without a call of Python in between.
make_header: Callable[[tuple[Any, ...]], Header] = partial(tuple.__new__, Header)

_TYPES = {int(known): known for known in FrameType}
_FLAGS = tuple(Flags(bits) for bits in range(4))
_SECOND_BYTES = {VERSION << 4 | bits: flags for bits, flags in enumerate(_FLAGS)}


def pack_header(header: Header, payload: Sequence[Buffer], checksum: Checksum) -> bytes:
    """The 16 bytes of `header`; its own checksum is computed from `payload`, whose pieces must add up to `size`."""
    if not 0 <= header.size <= LARGEST_PAYLOAD or not 0 <= header.stream_id <= LARGEST_STREAM_ID:
        raise OutOfBounds(f"no frame has {header.size} bytes on stream {header.stream_id}")
    fields = _FIELDS.pack(
        header.type, VERSION << 4 | int(header.flags), header.stream_id, header.size, header.sequence & SEQUENCE_MASK
    )
    value = checksum(fields, 0)
    for piece in payload:
        value = checksum(piece, value)
    return fields + _CHECKSUM.pack(value)


def pack_plain(kind: int, stream_id: int, payload: bytes, sequence: int, checksum: Checksum) -> bytes:
    """A whole frame without flags, as `pack_header` and its payload; type, stream and size are known to be right."""
    fields = _FIELDS.pack(kind, PLAIN, stream_id, len(payload), sequence)
    return fields + _CHECKSUM.pack(checksum(payload, checksum(fields, 0))) + payload


def unpack_header(data: Buffer, start: int = 0) -> Header:
    """The header in the 16 bytes of `data` from `start` on. Raises RemoteErrors for what no frame may say; the checksum
    is read, not checked, for the payload is not here yet."""
    kind, second, stream_id, size, sequence, checksum = _WHOLE.unpack_from(data, start)
    known, flags = _TYPES.get(kind), _SECOND_BYTES.get(second)
    if known is None or flags is None or size > LARGEST_PAYLOAD:
        raise _fault(kind, second, size)
    return make_header((known, flags, stream_id, size, sequence, checksum))


def _fault(kind: int, second: int, size: int) -> RemoteError:
    """The version first: of another one, nothing else is known."""
    if second >> 4 != VERSION:
        return UnknownVersion(f"the frame is of version {second >> 4}, this side speaks {VERSION}")
    if kind not in _TYPES:
        return MalformedFrame(f"no frame has the type {kind:#04x}")
    if second not in _SECOND_BYTES:
        return MalformedFrame(f"reserved flags are set: {second & 0x0F:#x}")
    return TooLarge(f"a payload of {size} bytes; {LARGEST_PAYLOAD} is the most")


def checksum_of(header: Buffer, payload: Buffer, checksum: Checksum) -> int:
    """CRC-32 over the first 12 of the header's 16 bytes and then the payload."""
    return checksum(payload, checksum(header[:12], 0))
