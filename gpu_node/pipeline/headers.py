"""Tensor headers at the pace of decode steps: one like an earlier one is patched or recognised, not made anew.

From step to step only epoch, batch, sequence and checksums change. `wire.tensors` is the reference: what is written and
read here is equal to what it writes and reads, and everything that is new goes through it. Not for several threads.
"""

from __future__ import annotations

import struct

from transport.codec import crc32
from wire.errors import BadChecksum
from wire.tensors import TensorFlags, TensorHeader, pack_tensor_header, unpack_tensor_header

# A stage sees a few shapes again and again; many mean that nothing comes again.
MOST_KEPT = 64
_NUMBER = struct.Struct(">I")
_VARYING = struct.Struct(">III")  # epoch, batch, sequence
_EPOCH_AT, _SEQUENCE_AT, _VARYING_END, _SUM_AT, _CHECK_AT = 8, 16, 20, 56, 60


class HeaderWriter:
    """Headers are known by identity, so whoever sends the same object again is served the quickest."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[TensorHeader, bytearray]] = {}  # holds the header, or its id could be another's

    def write(self, header: TensorHeader, epoch: int, sequence: int, checksum: int = 0) -> bytes:
        """The 64 bytes of `header` with these three instead of its own.

        Raises `OutOfBounds` for a header that the other side would refuse.
        """
        kept = self._kept.get(id(header))
        if kept is None:
            kept = header, bytearray(pack_tensor_header(header, crc32))
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[id(header)] = kept
        data = kept[1]
        _NUMBER.pack_into(data, _EPOCH_AT, epoch)
        _NUMBER.pack_into(data, _SEQUENCE_AT, sequence)
        _NUMBER.pack_into(data, _SUM_AT, checksum)
        _NUMBER.pack_into(data, _CHECK_AT, crc32(memoryview(data)[:_CHECK_AT], 0))
        return bytes(data)


class HeaderReader:
    def __init__(self) -> None:
        self._kept: dict[bytes, TensorHeader] = {}

    def read(self, data: memoryview) -> TensorHeader:
        """Of exactly 64 bytes. Raises RemoteErrors."""
        key = bytes(data[:_EPOCH_AT]) + data[_VARYING_END:_SUM_AT]
        kept = self._kept.get(key)
        checksum: int = _NUMBER.unpack_from(data, _SUM_AT)[0]
        if kept is None or (checksum and not kept.flags & TensorFlags.CHECKED):
            header = unpack_tensor_header(data, crc32)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = header
            return header
        if _NUMBER.unpack_from(data, _CHECK_AT)[0] != crc32(data[:_CHECK_AT], 0):
            raise BadChecksum("the tensor header's CRC is another")
        epoch, batch, sequence = _VARYING.unpack_from(data, _EPOCH_AT)
        return TensorHeader(
            kept.dtype, kept.shape, kept.size, kept.offset, epoch, batch, kept.layers, sequence, kept.flags, checksum
        )
