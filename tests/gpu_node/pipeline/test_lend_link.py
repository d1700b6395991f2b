"""Messages about lent blocks over a link: whole ones, ones in pieces, and pieces that do not belong together."""

from __future__ import annotations

import socket

import pytest

from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.lend_link import LendChannel
from gpu_node.pipeline.links import Link
from tests.gpu_node.pipeline.pairs import ENDS, PATIENT, beside, linked
from transport.codec import crc32
from wire.errors import OutOfBounds
from wire.tensors import DType, TensorFlags, TensorHeader, pack_tensor_header

SMALL = LinkSettings(frame_bytes=100, beat_seconds=1.0, silence_seconds=20.0)


@pytest.mark.parametrize("sizes", [(1,), (40, 0, 60), (100,), (101,), (99, 2), (350, 1, 49), (1000,)])
def test_a_message_arrives_as_it_was_said(sizes: tuple[int, ...]) -> None:
    parts = [bytes((at * 37 + byte) % 251 for byte in range(size)) for at, size in enumerate(sizes)]
    with linked(SMALL) as (left, right):
        here, there = LendChannel(left), LendChannel(right)
        with beside(lambda: [here.say(*parts), here.say(b"and on")]) as said:
            assert bytes(there.hear()) == b"".join(parts)
            assert bytes(there.hear()) == b"and on"
        assert said.error is None
        frames = -(-sum(sizes) // 100)
        assert left.counters.frames_sent == frames + 1, "no more frames than it takes"


def test_nothing_and_too_much_is_not_said() -> None:
    with linked() as (left, _):
        channel = LendChannel(left, most_bytes=10)
        for parts in ((), (b"",), (b"12345678901",)):
            with pytest.raises(OutOfBounds):
                channel.say(*parts)
        channel.say(b"1234567890")


def piece(total: int, data: bytes, offset: int, sequence: int = 0, last: bool = False) -> bytes:
    flags = TensorFlags.LAST if last else TensorFlags.NONE
    header = TensorHeader(DType.UINT8, (total,), len(data), offset, ENDS.epoch, sequence=sequence, flags=flags)
    return pack_tensor_header(header, crc32) + data


@pytest.mark.parametrize(
    "frames",
    [
        piece(1 << 27, b"ab", 0),
        piece(8, b"abcd", 4, last=True),
        piece(8, b"abcd", 0) + piece(8, b"abcd", 0, 1),
        piece(8, b"abcd", 0) + piece(9, b"abcde", 4, 1, last=True),
        piece(8, b"abcd", 0, last=True),
        piece(4, b"abcd", 0),
        piece(8, b"abcd", 0) + piece(8, b"ab", 6, 1, last=True),
    ],
)
def test_pieces_that_do_not_belong_together_end_the_link(frames: bytes) -> None:
    one, two = socket.socketpair()
    with Link(one, ENDS, PATIENT) as link, two:
        two.sendall(frames)
        with pytest.raises(LinkFault):
            LendChannel(link, most_bytes=1000).hear()
        assert link.end is not None
