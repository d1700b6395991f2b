"""VTP: the 64 bytes in front of every piece of a tensor, and views of the pieces.

On a connection a piece is its header (the payload of WRITE, or of the first DATA frame of an answer) and then its bytes
in DATA frames of any size; on a link between stages the bytes follow the header at once.

     0               1               2               3
    +---------------+-------+-------+---------------+---------------+
    | 0x56 ("V")    |version| flags | dtype         | rank          |
    +---------------+-------+-------+---------------+---------------+
    | first layer                   | behind the last layer         |
    +-------------------------------+-------------------------------+
    | epoch                                                         |
    | batch or buffer number                                        |
    | sequence of this piece                                        |
    | bytes of this piece                                           |
    | offset of this piece in the tensor, 8 bytes                   |
    | dimensions, 6 of 4 bytes, those beyond the rank 0             |
    | CRC-32 of the piece, or 0                                     |
    | CRC-32 of the 60 bytes above                                  |
    +---------------------------------------------------------------+

Header fields are big-endian, elements little-endian in C order. Invariants: no byte of a tensor is copied here, pieces
are views of the caller's buffer on both sides; sizes are checked against each other before a view is made. Must not
know torch, numpy, frames or sockets.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from wire.errors import BadChecksum, BadPayload, OutOfBounds, UnknownVersion
from wire.frames import Buffer, Checksum

__all__ = [
    "DIMENSION_MOST",
    "HANDLE_MOST",
    "LAYER_MOST",
    "MAGIC",
    "OFFSET_MOST",
    "PIECE_MOST",
    "RANK_MOST",
    "TENSOR_HEADER_SIZE",
    "TENSOR_VERSION",
    "USUAL_PIECE",
    "DType",
    "TensorFlags",
    "TensorHeader",
    "check_piece",
    "flat_view",
    "pack_tensor_header",
    "pieces",
    "place",
    "split_piece",
    "tensor_bytes",
    "unpack_tensor_header",
]

TENSOR_HEADER_SIZE = 64
TENSOR_VERSION = 1
MAGIC = 0x56
RANK_MOST = 6
DIMENSION_MOST = (1 << 32) - 1
HANDLE_MOST = (1 << 32) - 1
LAYER_MOST = (1 << 16) - 1
PIECE_MOST = (1 << 32) - 1  # its field; a larger tensor goes in several
# What a cut connection has to send again, and what one of two buffers holds when the pieces are double-buffered.
USUAL_PIECE = 16 << 20
OFFSET_MOST = (1 << 63) - 1  # fits a signed number, which is what other languages have

_LAYOUT = struct.Struct(">BBBBHHIIIIQ6II")
_CHECKSUM = struct.Struct(">I")
_CHECKED = TENSOR_HEADER_SIZE - 4


class DType(IntEnum):
    """What an element is. The upper four bits are its family, the lower ones tell its width apart."""

    BOOL = 0x01
    UINT8 = 0x10
    UINT16 = 0x11
    UINT32 = 0x12
    UINT64 = 0x13
    INT8 = 0x20
    INT16 = 0x21
    INT32 = 0x22
    INT64 = 0x23
    FLOAT16 = 0x31
    FLOAT32 = 0x32
    FLOAT64 = 0x33
    BFLOAT16 = 0x41
    FLOAT8_E4M3FN = 0x50
    FLOAT8_E5M2 = 0x51
    COMPLEX64 = 0x63
    COMPLEX128 = 0x64

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return _SIZES[self]


_SIZES = {
    kind: 1 if kind in (DType.BOOL, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2) else 1 << (kind & 0x0F) for kind in DType
}
_DTYPES = {int(kind): kind for kind in DType}


class TensorFlags(IntFlag):
    """Four bits; 4 and 8 are reserved and must be 0."""

    NONE = 0
    CHECKED = 1  # the piece's CRC is given
    LAST = 2  # no piece of this tensor comes after this one


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One piece of a tensor. `batch` is the buffer's number in remote memory, the batch's between stages."""

    dtype: DType
    shape: tuple[int, ...]
    size: int  # bytes of the piece
    offset: int = 0  # bytes
    epoch: int = 0
    batch: int = 0
    layers: tuple[int, int] = (0, 0)  # half open; (0, 0): no layer
    sequence: int = 0
    flags: TensorFlags = TensorFlags.NONE
    checksum: int = 0

    @property
    def tensor_size(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    @property
    def last(self) -> bool:
        return bool(self.flags & TensorFlags.LAST)

    def fault(self) -> str | None:
        """What contradicts itself; None if nothing does."""
        first, behind = self.layers
        if len(self.shape) > RANK_MOST or not all(0 <= each <= DIMENSION_MOST for each in self.shape):
            return f"no tensor has the shape {self.shape}"
        if not 0 <= self.size <= PIECE_MOST:
            return f"a piece of {self.size} bytes; {PIECE_MOST} is the most"
        if self.tensor_size > OFFSET_MOST or not 0 <= self.offset <= self.tensor_size - self.size:
            return f"{self.size} bytes at {self.offset} are not within {self.tensor_size}"
        if not 0 <= first <= behind <= LAYER_MOST:
            return f"{first} to {behind} are no layers"
        if self.checksum and not self.flags & TensorFlags.CHECKED:
            return "a checksum is given and not marked"
        return None


def tensor_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a whole tensor; of rank 0: of one element."""
    return math.prod(shape) * dtype.size


def pack_tensor_header(header: TensorHeader, checksum: Checksum) -> bytes:
    """64 bytes. Raises OutOfBounds for a header that the other side would refuse."""
    fault = header.fault()
    if fault:
        raise OutOfBounds(fault)
    shape = header.shape + (0,) * (RANK_MOST - len(header.shape))
    marks = TENSOR_VERSION << 4 | header.flags
    try:
        data = _LAYOUT.pack(
            MAGIC, marks, header.dtype, len(header.shape), *header.layers, header.epoch, header.batch,
            header.sequence, header.size, header.offset, *shape, header.checksum,
        )  # fmt: skip
    except struct.error as error:
        raise OutOfBounds(f"a number of the header is too large: {error}") from error
    return data + _CHECKSUM.pack(checksum(data, 0))


def unpack_tensor_header(data: Buffer, checksum: Checksum) -> TensorHeader:
    """The header in the first 64 bytes. Raises RemoteErrors; the CRC comes first, so what is wrong was sent so."""
    view = memoryview(data)
    if view.nbytes < TENSOR_HEADER_SIZE:
        raise BadPayload(f"{view.nbytes} bytes hold no tensor header")
    magic, marks, dtype, rank, first, behind, epoch, batch, sequence, size, offset, *rest = _LAYOUT.unpack_from(view)
    if _CHECKSUM.unpack_from(view, _CHECKED)[0] != checksum(view[:_CHECKED], 0):
        raise BadChecksum("the tensor header's CRC is another")
    if magic != MAGIC:
        raise BadPayload(f"no tensor begins with {magic:#04x}")
    if marks >> 4 != TENSOR_VERSION:
        raise UnknownVersion(f"the tensor is of version {marks >> 4}, this side speaks {TENSOR_VERSION}")
    if marks & 0x0C or dtype not in _DTYPES or rank > RANK_MOST or any(rest[rank:RANK_MOST]):
        raise BadPayload("the tensor has reserved flags, an unknown dtype or dimensions beyond its rank")
    header = TensorHeader(
        _DTYPES[dtype], tuple(rest[:rank]), size, offset, epoch, batch, (first, behind), sequence,
        TensorFlags(marks & 0x0F), rest[RANK_MOST],
    )  # fmt: skip
    fault = header.fault()
    if fault:
        raise BadPayload(fault)
    return header


def pieces(tensor: TensorHeader, data: Buffer, checksum: Checksum, piece_bytes: int = USUAL_PIECE) -> Iterator[
    tuple[bytes, memoryview]
]:  # fmt: skip
    """Header and view of each piece of `data`, the bytes from `tensor.offset` on; together one gather write each.

    `tensor` gives what all pieces share; its sequence and offset are the first one's, its CHECKED flag asks for the
    pieces' CRC. The views are of `data`: nothing is copied, so it must stay as it is until it is sent.
    """
    view = flat_view(data)
    if not 0 < piece_bytes <= PIECE_MOST:
        raise OutOfBounds(f"pieces of {piece_bytes} bytes; {PIECE_MOST} is the most")
    checked = tensor.flags & TensorFlags.CHECKED
    for number, start in enumerate(range(0, max(view.nbytes, 1), piece_bytes)):
        piece = view[start : start + piece_bytes]
        last = TensorFlags.LAST if start + piece.nbytes == view.nbytes else TensorFlags.NONE
        header = TensorHeader(
            tensor.dtype, tensor.shape, piece.nbytes, tensor.offset + start, tensor.epoch, tensor.batch,
            tensor.layers, tensor.sequence + number, checked | last, checksum(piece, 0) if checked else 0,
        )  # fmt: skip
        yield pack_tensor_header(header, checksum), piece


def place(header: TensorHeader, room: Buffer) -> memoryview:
    """Where in `room`, the buffer of the whole tensor, the piece belongs: a writable view to receive into.

    Raises BadPayload when the tensor has not the size of the room.
    """
    view = flat_view(room)
    if view.readonly:
        raise OutOfBounds("the buffer cannot be written")
    if view.nbytes != header.tensor_size:
        raise BadPayload(f"a tensor of {header.tensor_size} bytes for a buffer of {view.nbytes}")
    return view[header.offset : header.offset + header.size]


def check_piece(header: TensorHeader, piece: Buffer, checksum: Checksum) -> None:
    """Raises BadChecksum or BadPayload when the bytes are not those that the header was made for."""
    view = flat_view(piece)
    if view.nbytes != header.size:
        raise BadPayload(f"{view.nbytes} bytes where the header says {header.size}")
    if header.flags & TensorFlags.CHECKED and checksum(view, 0) != header.checksum:
        raise BadChecksum("the piece's CRC is another")


def split_piece(payload: Buffer, checksum: Checksum) -> tuple[TensorHeader, memoryview]:
    """Header and piece that are here together, one after the other; the piece is a view."""
    header = unpack_tensor_header(payload, checksum)
    piece = flat_view(payload)[TENSOR_HEADER_SIZE:]
    check_piece(header, piece, checksum)
    return header, piece


def flat_view(data: Buffer) -> memoryview:
    """`data` as bytes, uncopied; it must be contiguous."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise OutOfBounds("the buffer is not contiguous")
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")
