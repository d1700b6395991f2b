"""LZ4 within exact bounds, and the CRC of zlib."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
import zlib

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.codec import LZ4, Lz4Codec, crc32
from wire.messages_session import CAPABILITY_BYTES

CODEC = Lz4Codec()


@given(st.binary(min_size=1, max_size=5000))
def test_there_and_back(data: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        block = CODEC.compress(kind(data))
        assert CODEC.decompress(memoryview(block), len(data)) == data


@pytest.mark.parametrize("size", [0, 1, 999, 1001, 1 << 20])
def test_a_block_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        CODEC.decompress(CODEC.compress(bytes(1000)), size)


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_anything_gives_that_size_or_a_value_error(data: bytes, size: int) -> None:
    with contextlib.suppress(ValueError):
        assert len(CODEC.decompress(data, size)) == size


def test_a_bomb_makes_no_more_than_asked_for() -> None:
    bomb = CODEC.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            CODEC.decompress(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_blocks_are_plain_ones() -> None:
    assert lz4.block.decompress(CODEC.compress(b"a" * 100), uncompressed_size=100) == b"a" * 100
    assert len(LZ4.encode()) <= CAPABILITY_BYTES


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_the_checksum_is_that_of_zlib(data: bytes, before: int) -> None:
    assert crc32(data, before) == zlib.crc32(data, before)
    assert crc32(memoryview(bytearray(data)), before) == zlib.crc32(data, before)


def test_random_bytes_grow_by_little() -> None:
    data = os.urandom(1 << 16)
    assert len(CODEC.compress(data)) <= len(data) + len(data) // 255 + 16
