"""Tensor headers say the same on both sides, and no byte of a tensor is copied on the way."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.errors import BadChecksum, BadPayload, OutOfBounds, RemoteError, UnknownVersion
from wire.tensors import (
    PIECE_MOST,
    RANK_MOST,
    TENSOR_HEADER_SIZE,
    DType,
    TensorFlags,
    TensorHeader,
    check_piece,
    flat_view,
    pack_tensor_header,
    pieces,
    place,
    split_piece,
    tensor_bytes,
    unpack_tensor_header,
)

UINT32 = st.integers(0, (1 << 32) - 1)
MEGABYTE = 1 << 20


@st.composite
def headers(draw: st.DrawFn) -> TensorHeader:
    dtype = draw(st.sampled_from(DType))
    shape = tuple(draw(st.lists(st.integers(0, 1000), max_size=RANK_MOST)))
    whole = tensor_bytes(dtype, shape)
    offset = draw(st.integers(0, whole))
    size = draw(st.integers(0, min(whole - offset, PIECE_MOST)))
    layers = tuple(sorted(draw(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)))))
    flags = draw(st.sampled_from([TensorFlags(bits) for bits in range(4)]))
    checksum = draw(UINT32) if flags & TensorFlags.CHECKED else 0
    numbers = draw(st.tuples(UINT32, UINT32)), draw(UINT32)
    return TensorHeader(dtype, shape, size, offset, *numbers[0], layers, numbers[1], flags, checksum)


@settings(max_examples=100, deadline=None)
@given(headers())
def test_headers_come_back_as_they_were(header: TensorHeader) -> None:
    data = pack_tensor_header(header, zlib.crc32)
    assert len(data) == TENSOR_HEADER_SIZE
    assert unpack_tensor_header(data, zlib.crc32) == header


@settings(max_examples=100, deadline=None)
@given(headers(), st.integers(0, TENSOR_HEADER_SIZE * 8 - 1))
def test_every_flipped_bit_is_found(header: TensorHeader, bit: int) -> None:
    data = bytearray(pack_tensor_header(header, zlib.crc32))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteError):
        unpack_tensor_header(data, zlib.crc32)


@settings(max_examples=200, deadline=None)
@given(headers(), st.integers(0, 59), st.integers(0, 255))
def test_a_header_that_was_sealed_so_is_judged_too(header: TensorHeader, place_of: int, value: int) -> None:
    data = bytearray(pack_tensor_header(header, zlib.crc32))
    data[place_of] = value
    sealed = bytes(data[:60]) + struct.pack(">I", zlib.crc32(data[:60]))
    try:
        changed = unpack_tensor_header(sealed, zlib.crc32)
    except RemoteError:
        return
    assert pack_tensor_header(changed, zlib.crc32) == sealed


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_give_only_the_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        unpack_tensor_header(data, zlib.crc32)


def _sealed(changes: dict[int, bytes]) -> bytes:
    header = TensorHeader(DType.FLOAT32, (2, 3), 24)
    data = bytearray(pack_tensor_header(header, zlib.crc32)[:60])
    for start, new in changes.items():
        data[start : start + len(new)] = new
    return bytes(data) + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({0: b"v"}, BadPayload),
        ({1: b"\x20"}, UnknownVersion),
        ({1: b"\x14"}, BadPayload),
        ({2: b"\x00"}, BadPayload),
        ({3: b"\x07"}, BadPayload),
        ({3: b"\x01"}, BadPayload),  # the second dimension is beyond the rank
        ({4: b"\x00\x02\x00\x01"}, BadPayload),
        ({20: b"\x00\x00\x00\x19"}, BadPayload),  # more than the tensor has
        ({24: b"\x00" * 7 + b"\x01"}, BadPayload),
        ({24: b"\xff" * 8}, BadPayload),
        ({32: b"\xff" * 8}, BadPayload),  # a tensor beyond every address
        ({56: b"\x01"}, BadPayload),
    ],
)
def test_each_contradiction_is_named(changes: dict[int, bytes], error: type[RemoteError]) -> None:
    assert unpack_tensor_header(_sealed({}), zlib.crc32).shape == (2, 3)
    with pytest.raises(error):
        unpack_tensor_header(_sealed(changes), zlib.crc32)


@pytest.mark.parametrize(
    "header",
    [
        TensorHeader(DType.INT8, (1,) * 7, 1),
        TensorHeader(DType.INT8, (-1,), 0),
        TensorHeader(DType.INT8, (4,), 5),
        TensorHeader(DType.INT8, (4,), 4, offset=1),
        TensorHeader(DType.INT8, (1 << 32,), 4),
        TensorHeader(DType.INT8, (1 << 20, 1 << 20), PIECE_MOST + 1),
        TensorHeader(DType.INT8, (4,), 4, epoch=1 << 32),
        TensorHeader(DType.INT8, (4,), 4, layers=(3, 2)),
        TensorHeader(DType.INT8, (4,), 4, checksum=1),
    ],
)
def test_a_header_that_nobody_may_send_is_our_own_mistake(header: TensorHeader) -> None:
    with pytest.raises(OutOfBounds):
        pack_tensor_header(header, zlib.crc32)


def test_sizes_of_elements() -> None:
    sizes = {kind.name: kind.size for kind in DType}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "FLOAT16": 2, "FLOAT32": 4, "FLOAT64": 8, "BFLOAT16": 2, "FLOAT8_E4M3FN": 1, "FLOAT8_E5M2": 1, "COMPLEX64": 8,
        "COMPLEX128": 16,
    }  # fmt: skip
    assert tensor_bytes(DType.FLOAT16, ()) == 2
    assert tensor_bytes(DType.FLOAT16, (3, 0)) == 0


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64), st.booleans())
def test_pieces_put_together_are_the_tensor(data: bytes, piece_bytes: int, checked: bool) -> None:
    flags = TensorFlags.CHECKED if checked else TensorFlags.NONE
    tensor = TensorHeader(DType.UINT8, (len(data),), 0, batch=7, epoch=3, flags=flags)
    room = bytearray(len(data))
    lasts = []
    for number, (header_bytes, piece) in enumerate(pieces(tensor, data, zlib.crc32, piece_bytes)):
        header, received = split_piece(header_bytes + piece, zlib.crc32)
        assert (header.sequence, header.batch, header.epoch) == (number, 7, 3)
        assert header.checksum == (zlib.crc32(piece) if checked else 0)
        place(header, room)[:] = received
        lasts.append(header.last)
    assert room == data
    assert lasts == [False] * (len(lasts) - 1) + [True]


def test_a_transfer_is_taken_up_again_in_the_middle() -> None:
    tensor = TensorHeader(DType.UINT8, (100,), 0, offset=60, sequence=6)
    sent = [unpack_tensor_header(each, zlib.crc32) for each, _ in pieces(tensor, bytes(40), zlib.crc32, 30)]
    assert [(each.offset, each.size, each.sequence) for each in sent] == [(60, 30, 6), (90, 10, 7)]


def test_no_byte_is_copied_on_either_side() -> None:
    data, room = bytearray(32 * MEGABYTE), bytearray(32 * MEGABYTE)
    tensor = TensorHeader(DType.FLOAT32, (8 * MEGABYTE,), 0, flags=TensorFlags.CHECKED)
    list(pieces(TensorHeader(DType.INT8, (1,), 0), b"x", zlib.crc32))  # what is made once is made here
    tracemalloc.start()
    try:
        for header_bytes, piece in pieces(tensor, data, zlib.crc32, MEGABYTE):
            assert piece.obj is data
            header = unpack_tensor_header(header_bytes, zlib.crc32)
            target = place(header, room)
            assert target.obj is room and not target.readonly and target.nbytes == piece.nbytes
            check_piece(header, target, zlib.crc32)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()


def test_views_of_other_formats_are_cast_and_not_copied() -> None:
    data = memoryview(bytearray(24)).cast("f", (2, 3))
    assert flat_view(data).obj is data.obj
    assert flat_view(data).nbytes == 24
    with pytest.raises(OutOfBounds, match="contiguous"):
        flat_view(memoryview(bytes(8))[::2])


def test_a_piece_that_changed_is_found_when_it_is_marked() -> None:
    tensor = TensorHeader(DType.UINT8, (4,), 0, flags=TensorFlags.CHECKED)
    ((header_bytes, _),) = pieces(tensor, b"abcd", zlib.crc32)
    with pytest.raises(BadChecksum):
        split_piece(header_bytes + b"abce", zlib.crc32)
    with pytest.raises(BadPayload):
        split_piece(header_bytes + b"abcde", zlib.crc32)


@pytest.mark.parametrize(
    ("room", "error"), [(bytearray(3), BadPayload), (bytearray(5), BadPayload), (bytes(4), OutOfBounds)]
)
def test_a_piece_only_goes_where_its_tensor_fits(room: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        place(TensorHeader(DType.UINT8, (4,), 4), room)


@pytest.mark.parametrize("piece_bytes", [0, -1, PIECE_MOST + 1])
def test_pieces_have_a_size_that_can_be_told(piece_bytes: int) -> None:
    with pytest.raises(OutOfBounds):
        list(pieces(TensorHeader(DType.UINT8, (4,), 0), b"abcd", zlib.crc32, piece_bytes))
