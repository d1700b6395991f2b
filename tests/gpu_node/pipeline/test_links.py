"""Links between stages: frames whole and in order, ends that are noticed, nothing copied, no hostile byte believed."""

from __future__ import annotations

import random
import socket
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.pipeline.ends import LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.links import SEQUENCE_MASK, Link
from tests.gpu_node.pipeline.pairs import (
    ENDS,
    PATIENT,
    beside,
    header,
    linked,
)
from wire.errors import OutOfBounds
from wire.tensors import DType, TensorFlags, TensorHeader


def test_a_frame_comes_as_it_was_sent() -> None:
    with linked() as (left, right):
        sent = TensorHeader(DType.BFLOAT16, (2, 3), 12, batch=7, layers=(4, 9), flags=TensorFlags.LAST)
        left.send(sent, b"abcdef", bytearray(b"gh"), memoryview(b"ijkl"))
        found, data = right.receive()
        assert bytes(data) == b"abcdefghijkl"
        assert (found.dtype, found.shape, found.batch, found.layers) == (DType.BFLOAT16, (2, 3), 7, (4, 9))
        assert (found.epoch, found.sequence, found.last) == (ENDS.epoch, 0, True)


def test_several_frames_in_one_write() -> None:
    with linked() as (left, right):
        same = header(3)
        left.send_frames((header(2), [b"ab"]), (same, [b"cde"]), (same, [b"f", b"gh"]))
        assert [bytes(right.receive().data) for _ in range(3)] == [b"ab", b"cde", b"fgh"]


def test_two_frames_stay_while_a_third_is_awaited() -> None:
    with linked() as (left, right):
        for word in (b"one", b"two", b"six"):
            left.send(header(3), word)
        one = right.receive().data
        two = right.receive().data
        assert (bytes(one), bytes(two)) == (b"one", b"two")
        right.receive()
        assert (bytes(one), bytes(two)) == (b"six", b"two")


def test_own_buffers_and_the_callers() -> None:
    rooms = (bytearray(8), bytearray(8))
    one, two = socket.socketpair()
    with Link(one, ENDS, PATIENT) as left, Link(two, ENDS, PATIENT, rooms=rooms) as right:
        left.send(header(4), b"here")
        assert right.receive().data.obj is rooms[0]
        assert rooms[0] == b"here\0\0\0\0"
        mine = bytearray(5)
        left.send(header(4), b"mine")
        assert right.receive(into=mine).data.obj is mine
        assert mine == b"mine\0"
        left.send(header(6), b"larger")
        with pytest.raises(LinkFault, match="6 bytes where 5 were awaited"):
            right.receive(into=mine)


@pytest.mark.parametrize("rooms", [(bytearray(8),), (bytearray(8), bytearray(9)), (b"12345678", b"12345678")])
def test_rooms_that_are_none(rooms: tuple[bytes, ...]) -> None:
    one, two = socket.socketpair()
    with one, two, pytest.raises(OutOfBounds):
        Link(one, ENDS, PATIENT, rooms=rooms)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.binary(max_size=3000), max_size=4), st.booleans(), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    )
)
def test_any_frames_with_any_heartbeats_between_come_whole_and_in_order(
    frames: list[tuple[list[bytes], bool, int]],
) -> None:
    wanted = [(pieces, checked) for pieces, checked, _ in frames if any(pieces)]
    with linked() as (left, right):

        def send() -> None:
            for pieces, checked, beats in frames:
                for _ in range(beats):
                    left.beat()
                if any(pieces):
                    flags = TensorFlags.CHECKED if checked else TensorFlags.NONE
                    left.send(header(len(b"".join(pieces)), flags=flags), *pieces)

        with beside(send):
            for number, (pieces, _) in enumerate(wanted):
                found, data = right.receive()
                assert found.sequence == number
                assert bytes(data) == b"".join(pieces)


def test_a_frame_larger_than_every_buffer_of_the_kernel() -> None:
    size = 4 << 20
    data = random.Random(1).randbytes(size)
    large = LinkSettings(frame_bytes=size, beat_seconds=1, silence_seconds=20)
    with linked(large) as (left, right), beside(lambda: left.send(header(size), data[:999], data[999:])):
        assert right.receive().data == data


def test_more_pieces_than_one_write_takes() -> None:
    with linked() as (left, right):
        left.send(header(3000), *[bytes([number % 256]) for number in range(3000)])
        assert bytes(right.receive().data) == bytes(number % 256 for number in range(3000))


def test_what_no_frame_can_be_is_refused_and_nothing_is_sent() -> None:
    with linked(PATIENT, LinkSettings(frame_bytes=8)) as (left, right):
        for wrong, data in ((header(0), b""), (header(3), b"ab"), (header(PATIENT.frame_bytes + 1), None)):
            with pytest.raises(OutOfBounds):
                left.send(wrong, bytes(wrong.size) if data is None else data)
        with pytest.raises(OutOfBounds):
            left.send_frames((header(1), [b"a"]), (header(2), [b"a"]))
        left.send(header(1), b"x")
        assert bytes(right.receive().data) == b"x"


def test_the_other_sides_largest_frame_is_kept_to() -> None:
    one, two = socket.socketpair()
    with two, Link(one, ENDS, PATIENT, peer_frame_bytes=10) as link, pytest.raises(OutOfBounds, match="10 at most"):
        link.send(header(11), bytes(11))


def test_counters() -> None:
    with linked() as (left, right):
        for _ in range(3):
            left.send(header(5), b"there")
            right.send(header(4), right.receive().data[:4])
            left.receive()
        left.beat()
        right.listen()
        found, other = left.counters, right.counters
        assert (found.round_trips, found.frames_sent, found.frames_received) == (3, 3, 3)
        assert (found.bytes_sent, found.bytes_received, other.bytes_received) == (15, 12, 15)
        assert (found.beats_sent, other.beats_received) == (1, 1)
        assert other.round_trips == 2  # what came first answered nothing
        assert found.sending_microseconds > 0


def test_frames_of_an_older_epoch_are_dropped_and_those_of_a_newer_end_the_link() -> None:
    with linked() as (left, right):
        left.send(header(3), b"old")
        right.renew(4)
        left.send(header(5), b"older")
        left.renew(4)
        left.send(header(3), b"new")
        found, data = right.receive()
        assert (bytes(data), found.epoch, right.counters.frames_dropped) == (b"new", 4, 2)
        left.renew(6)
        left.send(header(1), b"x")
        with pytest.raises(LinkFault, match="epoch 6 came in epoch 4"):
            right.receive()
        for epoch in (4, 3, 1 << 32):
            with pytest.raises(OutOfBounds):
                left.renew(epoch)


def test_a_dropped_frame_does_not_touch_the_last_two() -> None:
    with linked() as (left, right):
        left.send(header(3), b"one")
        one = right.receive().data
        left.send(header(3), b"old")
        right.renew(4)
        left.renew(4)
        left.send(header(3), b"two")
        two = right.receive().data
        assert (bytes(one), bytes(two)) == (b"one", b"two")


def test_sequence_numbers_begin_anew_after_the_last() -> None:
    with linked() as (left, right):
        left._next_sent = right._next_received = SEQUENCE_MASK
        for word in (b"a", b"b"):
            left.send(header(1), word)
        assert [right.receive().header.sequence for _ in range(2)] == [SEQUENCE_MASK, 0]


def test_nothing_is_copied() -> None:
    """Neither on the way out nor in: beside the buffers that were there, a frame of 8 MiB takes a few KB."""
    size = 8 << 20
    data, into = bytearray(size), bytearray(size)
    with linked(LinkSettings(frame_bytes=size, beat_seconds=1, silence_seconds=20)) as (left, right):
        done = threading.Event()

        def send() -> None:
            for _ in range(3):
                left.send(header(size, flags=TensorFlags.CHECKED), memoryview(data)[:100], memoryview(data)[100:])
            done.set()

        tracemalloc.start()
        try:
            with beside(send):
                for room in (None, into, None):
                    right.receive(into=room)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert done.is_set()
        assert peak < 1 << 17


def test_settings_and_ends_are_checked() -> None:
    for wrong in ({"beat_seconds": 0.0}, {"silence_seconds": 0.1}, {"frame_bytes": 0}, {"frame_bytes": 1 << 33}):
        with pytest.raises(ValueError):
            LinkSettings(**wrong)
    for stage, epoch in ((-1, 0), (1 << 16, 0), (0, -1), (0, 1 << 32)):
        with pytest.raises(ValueError):
            LinkEnds(stage, 0, epoch)
