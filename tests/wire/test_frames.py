from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import MalformedFrame, OutOfBounds, RemoteError, TooLarge, UnknownVersion
from wire.frames import HEADER_SIZE, Flags, FrameType, Header, checksum_of, pack_header, unpack_header
from wire.limits import LARGEST_PAYLOAD

VECTORS = Path(__file__).parent / "vectors"
HEADERS = st.builds(
    Header,
    st.sampled_from(FrameType),
    st.sampled_from([Flags(bits) for bits in range(4)]),
    st.integers(0, 0xFFFF),
    st.integers(0, LARGEST_PAYLOAD),
    st.integers(0, 0xFFFF_FFFF),
)
# name of the vector: header and payload that it must be
KNOWN = {
    "frame-hello": (Header(FrameType.HELLO, Flags.NONE, 0, 5, 0), b"hello"),
    "frame-ping-empty": (Header(FrameType.PING, Flags.NONE, 0, 0, 7), b""),
    "frame-credit": (Header(FrameType.CREDIT, Flags.NONE, 513, 4, 0x01020304), b"\0\1\0\0"),
    "frame-generate-end": (Header(FrameType.GENERATE, Flags.END, 1, 11, 3), b"hello world"),
    "frame-data-compressed": (Header(FrameType.DATA, Flags.COMPRESSED, 65535, 6, 0xFFFF_FFFF), b"\0\0\0\1\x10a"),
    "frame-goodbye": (Header(FrameType.GOODBYE, Flags.END, 0, 0, 9), b""),
}
BAD = {
    "bad-version": UnknownVersion,
    "bad-type": MalformedFrame,
    "bad-flags": MalformedFrame,
    "bad-size": TooLarge,
}


def vector(name: str) -> bytes:
    lines = (VECTORS / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("name", KNOWN)
def test_known_frames_are_packed_and_unpacked_as_in_the_vectors(name: str) -> None:
    header, payload = KNOWN[name]
    whole = vector(name)
    assert pack_header(header, (payload,), zlib.crc32) + payload == whole
    read = unpack_header(whole)
    assert (read.type, read.flags, read.stream_id, read.size, read.sequence) == (
        header.type,
        header.flags,
        header.stream_id,
        header.size,
        header.sequence,
    )
    assert checksum_of(whole[:HEADER_SIZE], whole[HEADER_SIZE:], zlib.crc32) == read.checksum


@pytest.mark.parametrize("name", BAD)
def test_bad_vectors_are_refused_from_the_header_alone(name: str) -> None:
    with pytest.raises(BAD[name]):
        unpack_header(vector(name)[:HEADER_SIZE])


def test_a_vector_with_a_wrong_checksum_shows_it() -> None:
    whole = vector("bad-checksum")
    read = unpack_header(whole)
    assert checksum_of(whole[:HEADER_SIZE], whole[HEADER_SIZE:], zlib.crc32) != read.checksum


def test_every_vector_of_frames_is_checked() -> None:
    names = {path.stem for path in VECTORS.glob("*.hex") if path.stem.startswith(("frame-", "bad-"))}
    assert names == {*KNOWN, *BAD, "bad-checksum"}


@given(HEADERS)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    read = unpack_header(pack_header(header, (), zlib.crc32))
    assert read == header._replace(checksum=read.checksum)


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_16_bytes_are_a_header_or_the_peers_fault(data: bytes) -> None:
    try:
        header = unpack_header(data)
    except RemoteError:
        return
    assert header.size <= LARGEST_PAYLOAD


def test_pieces_of_a_payload_count_as_one() -> None:
    header = Header(FrameType.DATA, Flags.NONE, 1, 4, 0)
    assert pack_header(header, (b"ab", memoryview(b"cd")), zlib.crc32) == pack_header(header, (b"abcd",), zlib.crc32)


@pytest.mark.parametrize(("stream_id", "size"), [(0x10000, 0), (-1, 0), (1, LARGEST_PAYLOAD + 1), (1, -1)])
def test_what_no_header_can_say_is_our_own_fault(stream_id: int, size: int) -> None:
    with pytest.raises(OutOfBounds):
        pack_header(Header(FrameType.DATA, Flags.NONE, stream_id, size, 0), (), zlib.crc32)


def test_numbers_of_types_are_as_documented_for_ever() -> None:
    assert {kind.name: int(kind) for kind in FrameType} == {
        "HELLO": 0x01, "WELCOME": 0x02, "PING": 0x03, "PONG": 0x04, "CREDIT": 0x05, "CANCEL": 0x06, "ERROR": 0x07,
        "GOODBYE": 0x08, "LOAD": 0x10, "PROGRESS": 0x11, "LOADED": 0x12, "UNLOAD": 0x13, "PUSH": 0x14,
        "GENERATE": 0x20, "TOKENS": 0x21, "DONE": 0x22, "EMBED": 0x23, "VECTORS": 0x24, "ALLOC": 0x30,
        "ALLOCATED": 0x31, "FREE": 0x32, "WRITE": 0x33, "READ": 0x34, "DATA": 0x35, "ACK": 0x36, "RUN": 0x40,
        "STATS": 0x50,
    }  # fmt: skip
