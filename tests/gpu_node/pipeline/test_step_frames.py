"""Steps and answers over a link: what was sent comes, in few writes, and what is neither ends the link."""

from __future__ import annotations

import socket
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from gpu_node.engine.step import BlockCopy, Row
from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.errors import LinkError, LinkFault
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.step_frames import (
    FAILURE_BYTES,
    NO_OUTPUT,
    Room,
    Rows,
    StepFailure,
    receive_answer,
    receive_step,
    send_failure,
    send_hidden,
    send_output,
    send_step,
)
from gpu_node.pipeline.step_message import StepBounds, StepMessage, pack_step
from tests.gpu_node.pipeline.pairs import ENDS, PATIENT, beside, linked
from wire.tensors import DType, TensorFlags, TensorHeader

HIDDEN = 6
BOUNDS = StepBounds(4, 16, vocabulary=50, hidden_size=HIDDEN, tokens=4096)
MESSAGE = StepMessage(
    7, (Row(1, (3, 4, 5), 0, (2,), "logits", 1), Row(2, (9,), 5, (0, 3), "logits", 1)), "logits", (BlockCopy(1, 2),)
)
DATA = pack_step(MESSAGE)
FAILURE = StepFailure(1, "cpu:1", "out_of_memory", "it is full")


def rows(count: int, width: int = HIDDEN, seed: int = 0) -> Rows:
    numbers = numpy.random.default_rng(seed).normal(size=(count, width)).astype("<f4")
    return Rows(count, width, memoryview(numbers))


def numbers(found: Any) -> Any:
    assert isinstance(found, Rows)
    return numpy.frombuffer(found.data, "<f4").reshape(found.shape)


def same(found: Any, sent: Rows) -> bool:
    return numpy.array_equal(numbers(found), numbers(sent))


def test_a_step_comes_to_the_first_stage_as_it_is() -> None:
    with linked() as (head, stage):
        send_step(head, DATA, MESSAGE.number)
        work = receive_step(stage, BOUNDS, None)
        assert work.message == MESSAGE and bytes(work.data) == DATA
        assert work.hidden is None and work.failure is None


def test_hidden_states_come_into_the_room_with_their_step() -> None:
    room, sent = Room(), rows(4)
    with linked() as (before, stage):
        send_hidden(before, DATA, MESSAGE.number, sent)
        work = receive_step(stage, BOUNDS, room)
        assert work.message == MESSAGE and same(work.hidden, sent)
        assert before.counters.frames_sent == 2
        lies = numpy.frombuffer(room.of(1), "<f4")
        assert work.hidden is not None and numpy.shares_memory(lies, numbers(work.hidden)), "nothing is copied"


def test_rows_larger_than_a_frame_come_in_pieces() -> None:
    small = LinkSettings(frame_bytes=1 << 10, beat_seconds=1, silence_seconds=20)
    long = StepMessage(8, (Row(1, (1,) * 60, 0, tuple(range(15)), "hidden", 60),), "hidden")
    sent, room = rows(60), Room()
    with linked(small) as (before, stage):
        send_hidden(before, pack_step(long), 8, sent)
        assert same(receive_step(stage, BOUNDS, room).hidden, sent)
        assert before.counters.frames_sent == 1 + 2
        send_output(before, 8, sent)
        assert same(receive_answer(stage, 8, (60, HIDDEN), room), sent)


def test_answers_come_in_order_with_and_without_rows() -> None:
    logits, room = rows(2, 50), Room()
    with linked() as (stage, head):
        send_output(stage, 1, logits)
        send_output(stage, 2, None)
        send_output(stage, 3, rows(0, 50))
        send_failure(stage, None, 4, FAILURE.pack())
        send_output(stage, 5, logits)
        assert same(receive_answer(head, 1, (2, 50), room), logits)
        assert receive_answer(head, 2, (0, 50), room) is None
        assert receive_answer(head, 3, (0, 50), room) is None
        assert receive_answer(head, 4, (2, 50), room) == FAILURE
        assert same(receive_answer(head, 5, (2, 50), room), logits)


def test_a_failure_takes_the_place_of_hidden_states() -> None:
    room = Room()
    with linked() as (before, stage):
        send_failure(before, DATA, 7, FAILURE.pack())
        send_hidden(before, DATA, 7, rows(4))
        work = receive_step(stage, BOUNDS, room)
        assert work.failure == FAILURE.pack() and work.hidden is None and work.message == MESSAGE
        assert receive_step(stage, BOUNDS, room).failure is None, "the ring goes on"


def test_a_failure_is_told_however_long_its_words_are() -> None:
    failure = StepFailure.of(2, "cpu", "error", RuntimeError("\0\n\u20ac" * 100_000))
    assert failure.message.startswith("RuntimeError:") and len(failure.pack()) <= FAILURE_BYTES
    assert StepFailure.of(0, "cpu", "error", ValueError()).message == "ValueError"
    with linked() as (stage, head):
        send_failure(stage, None, 1, failure.pack())
        assert receive_answer(head, 1, (1, 1), Room()) == failure


def test_a_room_grows_and_is_used_again() -> None:
    asked: list[int] = []

    def allocate(size: int) -> bytearray:
        asked.append(size)
        return bytearray(size)

    room = Room(allocate)
    for size in (10, 20, 100_000, 50, 99_000):
        assert room.of(size).nbytes >= size
    assert asked == [FAILURE_BYTES, 100_000] and room.bytes == 100_000


def frame(data: bytes, dtype: DType = DType.UINT8, shape: tuple[int, ...] | None = None, **more: Any) -> Any:
    last = {"flags": TensorFlags.LAST, "batch": 7} | more
    return TensorHeader(dtype, shape or (len(data),), len(data), **last), (data,)


STATES = bytes(4 * 4 * HIDDEN)
WRONG_HIDDEN = {
    "no output": [frame(NO_OUTPUT)],
    "no failure": [frame(b"{}")],
    "a long failure": [frame(b"x" * (FAILURE_BYTES + 1))],
    "another step's": [frame(STATES, DType.FLOAT32, (4, HIDDEN), batch=8)],
    "fewer rows": [frame(STATES[:-24], DType.FLOAT32, (3, HIDDEN))],
    "other rows": [frame(STATES, DType.FLOAT32, (HIDDEN, 4))],
    "other numbers": [frame(STATES, DType.INT32, (4, HIDDEN))],
    "not the last": [frame(STATES, DType.FLOAT32, (4, HIDDEN), flags=TensorFlags.NONE)],
    "the last too soon": [frame(STATES[:24], DType.FLOAT32, (4, HIDDEN))],
    "not the first": [frame(STATES[:24], DType.FLOAT32, (4, HIDDEN), offset=24, flags=TensorFlags.NONE)],
    "twice": [frame(STATES[:24], DType.FLOAT32, (4, HIDDEN), flags=TensorFlags.NONE)] * 2,
    "a failure amidst": [frame(STATES[:24], DType.FLOAT32, (4, HIDDEN), flags=TensorFlags.NONE), frame(b"{}")],
}


@pytest.mark.parametrize("frames", WRONG_HIDDEN.values(), ids=WRONG_HIDDEN)
def test_what_are_no_hidden_states_ends_the_link(frames: list[Any]) -> None:
    with linked() as (before, stage):
        before.send_frames(frame(DATA), *frames)
        with pytest.raises(LinkFault):
            receive_step(stage, BOUNDS, Room())
        assert stage.end is not None


@pytest.mark.parametrize("frames", WRONG_HIDDEN.values(), ids=WRONG_HIDDEN)
def test_what_is_no_answer_ends_the_link(frames: list[Any]) -> None:
    with linked() as (stage, head):
        stage.send_frames(*frames)
        with pytest.raises(LinkFault):
            receive_answer(head, 7, (4, HIDDEN), Room())
        assert head.end is not None


def test_rows_where_none_are_due_end_the_link() -> None:
    with linked() as (stage, head):
        stage.send_frames(frame(STATES, DType.FLOAT32, (4, HIDDEN)))
        with pytest.raises(LinkFault):
            receive_answer(head, 7, (0, HIDDEN), Room())


@pytest.mark.parametrize(
    "wrong",
    [
        frame(b"what"),
        frame(DATA[:-1]),
        frame(DATA, batch=8),
        frame(DATA, DType.INT8),
        frame(DATA, shape=(1, len(DATA))),
        frame(DATA, flags=TensorFlags.NONE),
        frame(pack_step(StepMessage(7, (Row(1, (50,), 0, (2,)),), "nothing"))),  # no such token
        frame(pack_step(StepMessage(7, (Row(1, (5,), 0, (16,)),), "nothing"))),  # no such block
        frame(pack_step(StepMessage(7, (Row(1, (5,), 4, (0,)),), "nothing"))),  # no block there
    ],
)
def test_what_is_no_step_ends_the_link(wrong: Any) -> None:
    with linked() as (head, stage):
        head.send_frames(wrong)
        with pytest.raises(LinkFault, match="step"):
            receive_step(stage, BOUNDS, None)


@settings(max_examples=150, deadline=None)
@given(some.binary(max_size=400))
def test_random_bytes_are_never_a_step(data: bytes) -> None:
    one, two = socket.socketpair()
    with Link(one, ENDS, PATIENT) as stage, two:
        two.sendall(data)
        two.close()
        with pytest.raises(LinkError):
            receive_step(stage, BOUNDS, Room())


def test_a_step_is_received_while_it_is_sent() -> None:
    """More than sockets hold: the sender waits in its write."""
    long = StepMessage(9, (Row(1, (1,) * 64, 0, tuple(range(16)), "hidden", 64),), "hidden")
    wide = StepBounds(4, 16, vocabulary=50, hidden_size=1 << 13)
    sent = rows(64, 1 << 13)
    large = LinkSettings(frame_bytes=1 << 20, silence_seconds=20, beat_seconds=1)
    with linked(large) as (before, stage), beside(lambda: send_hidden(before, pack_step(long), 9, sent)):
        assert same(receive_step(stage, wide, Room()).hidden, sent)
