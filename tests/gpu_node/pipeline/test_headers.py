"""Headers written and read by memory equal those that `wire.tensors` makes and reads anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.pipeline.headers import MOST_KEPT, HeaderReader, HeaderWriter
from transport.codec import crc32
from wire.errors import OutOfBounds, RemoteError
from wire.tensors import DType, TensorFlags, TensorHeader, pack_tensor_header, tensor_bytes, unpack_tensor_header

numbers = st.integers(0, (1 << 32) - 1)


@st.composite
def headers(draw: st.DrawFn) -> TensorHeader:
    dtype = draw(st.sampled_from(list(DType)))
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    whole = tensor_bytes(dtype, shape)
    offset = draw(st.integers(0, whole))
    flags = draw(st.sampled_from([TensorFlags(bits) for bits in range(4)]))
    first = draw(st.integers(0, 40))
    return TensorHeader(
        dtype, shape, whole - offset, offset, batch=draw(st.integers(0, 3)), layers=(first, first + 2), flags=flags
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(headers(), min_size=1, max_size=4), st.data())
def test_equal_to_the_reference_however_often(made: list[TensorHeader], data: st.DataObject) -> None:
    writer, reader = HeaderWriter(), HeaderReader()
    for _ in range(8):
        header = data.draw(st.sampled_from(made))
        epoch, sequence = data.draw(numbers), data.draw(numbers)
        checksum = data.draw(numbers) if header.flags & TensorFlags.CHECKED else 0
        wanted = replace(header, epoch=epoch, sequence=sequence, checksum=checksum)
        written = writer.write(header, epoch, sequence, checksum)
        assert written == pack_tensor_header(wanted, crc32)
        assert reader.read(memoryview(written)) == unpack_tensor_header(written, crc32) == wanted


def test_what_was_written_stays_as_it_was() -> None:
    header, writer = TensorHeader(DType.UINT8, (2,), 2), HeaderWriter()
    first = writer.write(header, 1, 1)
    kept = bytes(first)
    writer.write(header, 2, 2)
    assert first == kept


@settings(max_examples=80, deadline=None)
@given(headers(), st.integers(0, 63), st.integers(1, 255), st.booleans())
def test_a_changed_byte_is_refused_also_where_the_header_is_known(
    header: TensorHeader, at: int, change: int, mended: bool
) -> None:
    """`mended`: with the right CRC over what is wrong."""
    reader = HeaderReader()
    good = pack_tensor_header(header, crc32)
    assert reader.read(memoryview(good)) == header
    bad = bytearray(good)
    bad[at] ^= change
    if mended:
        bad[60:] = crc32(bad[:60], 0).to_bytes(4, "big")
    try:
        wanted: TensorHeader | None = unpack_tensor_header(bad, crc32)
    except RemoteError:
        wanted = None
    for _ in range(2):
        if wanted is None:
            with pytest.raises(RemoteError):
                reader.read(memoryview(bad))
        else:
            assert reader.read(memoryview(bad)) == wanted


def test_what_cannot_be_sent_is_refused_and_not_remembered() -> None:
    writer, wrong = HeaderWriter(), TensorHeader(DType.UINT8, (2,), 3)
    for _ in range(2):
        with pytest.raises(OutOfBounds):
            writer.write(wrong, 0, 0)


def test_many_headers_are_not_kept() -> None:
    writer, reader = HeaderWriter(), HeaderReader()
    for size in range(1, 3 * MOST_KEPT):
        header = TensorHeader(DType.UINT8, (size,), size)
        assert reader.read(memoryview(writer.write(header, 0, 0))) == header
    assert max(len(writer._kept), len(reader._kept)) <= MOST_KEPT
