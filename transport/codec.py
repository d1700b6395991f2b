"""What `wire` wants from its driver: LZ4 blocks and a fast CRC-32.

Invariants: decompressing never makes more bytes than asked for, whatever the block says; the checksum is that of
`zlib`, from isal's vector code where it is installed. Must not know connections.
"""

from __future__ import annotations

import lz4.block

from wire.frames import Buffer, Checksum

try:
    from isal.isal_zlib import crc32 as _crc32
except ImportError:  # nobody builds it for this platform: the same number, some times slower
    from zlib import crc32 as _crc32

__all__ = ["LZ4", "Lz4Codec", "crc32"]

# The capability that both sides name in the handshake before either compresses.
LZ4 = "lz4"

crc32: Checksum = _crc32


class Lz4Codec:
    """LZ4 blocks without frame or size (https://github.com/lz4/lz4, doc/lz4_Block_format.md); a `wire` Codec."""

    def compress(self, data: Buffer, /) -> bytes:
        block: bytes = lz4.block.compress(data, store_size=False)
        return block

    def decompress(self, data: Buffer, size: int, /) -> bytes:
        """Exactly `size` bytes. Raises ValueError for what is not a block of that, having made no more than `size`."""
        try:
            plain: bytes = lz4.block.decompress(data, uncompressed_size=size)
        except (lz4.block.LZ4BlockError, MemoryError) as error:
            raise ValueError(str(error)) from error
        if len(plain) != size:
            raise ValueError(f"{len(plain)} bytes where {size} were due")
        return plain
