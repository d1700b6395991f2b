"""No byte of a stranger is believed: what is no frame ends the link with its own error, before any room is made."""

from __future__ import annotations

import socket
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.pipeline.errors import LinkError, LinkFault
from gpu_node.pipeline.links import SEQUENCE_MASK
from tests.gpu_node.pipeline.pairs import (
    BEAT,
    ENDS,
    PATIENT,
    beside,
    frame_bytes,
    header,
    hostile,
)
from transport.codec import crc32
from wire.tensors import TensorFlags, pack_tensor_header

HOSTILE = [
    b"\0" * 64,
    b"GET / HTTP/1.1\r\nHost: somewhere.example.org\r\nAccept: */*\r\n\r\n....",
    frame_bytes(b"ab", sequence=1),
    frame_bytes(b"ab", sequence=SEQUENCE_MASK),
    frame_bytes(b"ab", epoch=ENDS.epoch + 1),
    frame_bytes(bytes(PATIENT.frame_bytes + 1))[:64],
    frame_bytes(b"ab", flags=TensorFlags.CHECKED, checksum=5),
    frame_bytes(b"ab")[:59] + b"\xff" + frame_bytes(b"ab")[60:],
]


@pytest.mark.parametrize("data", HOSTILE)
def test_what_no_stage_says_ends_the_link(data: bytes) -> None:
    with hostile() as (link, other):
        other.sendall(data)
        with pytest.raises(LinkFault) as caught:
            link.receive()
        with pytest.raises(LinkFault) as again:
            link.receive()
        assert again.value is caught.value
        other.setblocking(True)
        assert other.recv(1) == b""  # told at once


def test_a_frame_too_large_is_refused_before_any_room_is_made() -> None:
    with hostile() as (link, other):
        other.sendall(pack_tensor_header(header(4_000_000_000, epoch=ENDS.epoch), crc32))
        tracemalloc.start()
        try:
            with pytest.raises(LinkFault, match="are the most"):
                link.receive()
            assert tracemalloc.get_traced_memory()[1] < 1 << 17
        finally:
            tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 200), st.integers(0, 255))
def test_changed_and_random_bytes_give_link_errors_only(noise: bytes, at: int, value: int) -> None:
    stream = bytearray(BEAT + frame_bytes(b"first", flags=TensorFlags.LAST) + BEAT + frame_bytes(b"second", 1))
    stream[at % len(stream)] = value
    for data in (bytes(stream), noise):
        with hostile() as (link, other):
            other.sendall(data)
            other.shutdown(socket.SHUT_WR)
            with pytest.raises(LinkError):
                for _ in range(3):
                    link.receive()
            assert link.end is not None


def test_the_same_bytes_whole_and_one_at_a_time() -> None:
    stream = BEAT + frame_bytes(b"first") + BEAT + BEAT + frame_bytes(b"second", 1)
    for step in (1, 7, len(stream)):
        with hostile() as (link, other):

            def say(other: socket.socket = other, step: int = step) -> None:
                for start in range(0, len(stream), step):
                    other.sendall(stream[start : start + step])

            with beside(say):
                assert [bytes(link.receive().data) for _ in range(2)] == [b"first", b"second"]
            assert link.counters.beats_received == 3
