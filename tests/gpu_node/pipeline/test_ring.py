"""Steps on a ring whose other end is a script: order, outcomes, counting, and the end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import numpy
import pytest

from gpu_node.engine.step import Row, Step
from gpu_node.errors import DeviceOutOfMemory, GenerationFailed, StageLost
from gpu_node.pipeline.ends import HEAD, LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkClosed, LinkError
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.ring import Ring, RingShape
from gpu_node.pipeline.step_frames import Rows, StepFailure, receive_step, send_failure, send_output
from gpu_node.pipeline.step_message import StepBounds

SHAPE = RingShape(2, vocabulary=500, hidden_size=3)
BOUNDS = StepBounds(4, 10, vocabulary=100, hidden_size=3)
SETTINGS = LinkSettings(frame_bytes=1 << 16, beat_seconds=1.0, silence_seconds=20.0)


class Stages:
    """Answers every row with its first token: as many times as its output has rows; some tokens fail."""

    def __init__(self, before: Link, behind: Link) -> None:
        self.before, self.behind = before, behind
        self.seen: list[tuple[int, ...]] = []
        self.hold = threading.Event()
        self.hold.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self.hold.set()
        for link in (self.before, self.behind):
            link.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                message = receive_step(self.before, BOUNDS, None).message
                assert self.hold.wait(60)
                self.seen.append(tuple(row.tokens[0] for row in message.rows))
                rows = [row.tokens[0] for row in message.rows for _ in range(row.output_tokens)]
                width = SHAPE.vocabulary if message.want == "logits" else SHAPE.hidden_size
                kind = {98: "out_of_memory", 99: "error"}.get(message.rows[0].tokens[0])
                if kind is not None:
                    failure = StepFailure(1, "cpu:1", kind, "this is why")  # type: ignore[arg-type]
                    send_failure(self.behind, None, message.number, failure.pack())
                elif message.want == "nothing" or not rows:
                    send_output(self.behind, message.number, None)
                else:
                    numbers = numpy.repeat(numpy.array(rows, numpy.float32), width)
                    send_output(self.behind, message.number, Rows(len(rows), width, numbers.data.cast("B")))
        except LinkError as error:  # with one of its links an epoch is over
            self.before.fail(error)
            self.behind.fail(error)


@contextmanager
def ring_of() -> Iterator[tuple[Ring, Stages, SimpleQueue[LinkError]]]:
    pairs = [socket.socketpair() for _ in range(2)]
    out, before = (Link(line, LinkEnds(HEAD, 0, 1), SETTINGS) for line in pairs[0])
    back, behind = (Link(line, LinkEnds(1, HEAD, 1), SETTINGS) for line in pairs[1])
    ends: SimpleQueue[LinkError] = SimpleQueue()
    stages = Stages(before, behind)
    ring = Ring(out, back, SHAPE, ends.put)
    try:
        yield ring, stages, ends
    finally:
        ring.close()
        stages.end()


def step(*tokens: int, output: str = "logits", count: int = 1) -> Step:
    return Step(tuple(Row(at, (token,), 0, (at,), output, count) for at, token in enumerate(tokens)))  # type: ignore[arg-type]


def first_numbers(ring: Ring) -> list[list[float]]:
    answered = ring.finish()
    try:
        return [
            [] if output is None else numpy.frombuffer(output.data, numpy.float32).reshape(output.shape)[:, 0].tolist()
            for output in answered.outputs
        ]
    finally:
        ring.release(answered)


def test_steps_come_back_in_their_order_one_message_each() -> None:
    with ring_of() as (ring, _, __):
        for token in (1, 2, 3):
            ring.begin(step(token, token + 10))
        assert ring.under_way == 3
        assert [first_numbers(ring) for _ in range(3)] == [[[1, 11]], [[2, 12]], [[3, 13]]]
        assert (ring.steps, ring.sent, ring.answered, ring.under_way) == (3, 3, 3, 0)
        assert ring.links[0].counters.frames_sent == ring.links[1].counters.frames_received == 3


def test_a_step_of_two_kinds_is_two_messages_and_the_copies_go_with_the_first() -> None:
    mixed = Step((*step(1, output="hidden").rows, Row(1, (2,), 0, (1,)), Row(2, (3,), 0, (2,), "logits", 1)))
    with ring_of() as (ring, stages, _):
        ring.begin(mixed)
        ring.begin(step(4, output="nothing", count=0))
        answered = ring.finish()
        assert [share.want for share in answered.shares] == ["logits", "hidden"]
        assert [output.shape for output in answered.outputs if output is not None] == [(1, 500), (1, 3)]
        assert first_numbers(ring) == [[]]
        assert ring.sent == 3 and stages.seen == [(2, 3), (1,), (4,)]


@pytest.mark.parametrize(("token", "error"), [(98, DeviceOutOfMemory), (99, GenerationFailed)])
def test_a_failure_is_one_steps_own(token: int, error: type[Exception]) -> None:
    with ring_of() as (ring, _, __):
        for tokens in ((1,), (token,), (3,)):
            ring.begin(step(*tokens))
        assert first_numbers(ring) == [[1]]
        with pytest.raises(error, match=r"cpu:1.*this is why"):
            ring.finish()
        assert first_numbers(ring) == [[3]] and not ring.over


def test_what_is_dropped_leaves_the_ring_as_it_was() -> None:
    with ring_of() as (ring, _, __):
        for tokens in ((1,), (98,), (3,)):
            ring.begin(step(*tokens))
        ring.drop()
        assert ring.under_way == 0
        ring.begin(step(4))
        assert first_numbers(ring) == [[4]]


def test_a_step_that_no_message_holds_is_refused_in_its_turn() -> None:
    vectors = numpy.zeros((8000, 3), numpy.float32)
    large = Step((Row(0, (1,) * 8000, 0, (0,), "logits", 1, vectors),))
    with ring_of() as (ring, _, __):
        ring.begin(step(1))
        ring.begin(large)
        assert first_numbers(ring) == [[1]]
        with pytest.raises(GenerationFailed, match="cannot be sent to the first stage"):
            ring.finish()
        ring.begin(step(2))
        assert first_numbers(ring) == [[2]] and ring.sent == 2


def test_many_answers_wait_in_the_ring_and_block_nobody() -> None:
    """More than any socket holds, while the head only sends."""
    with ring_of() as (ring, _, __):
        wide = step(*range(1, 9))
        for _ in range(300):
            ring.begin(wide)
        assert all(first_numbers(ring) == [list(range(1, 9))] for _ in range(300))


@pytest.mark.parametrize("which", ["before", "behind"])
def test_a_link_that_ends_loses_what_is_under_way(which: str) -> None:
    with ring_of() as (ring, stages, ends):
        stages.hold.clear()
        ring.begin(step(1))
        ring.begin(step(2))
        link: Link = getattr(stages, which)
        link.fail(LinkClosed("it died"))
        stages.hold.set()
        for _ in range(2):
            with pytest.raises(StageLost, match="a device that holds a part of the model is gone"):
                while True:
                    ring.finish()
            if not ring.under_way:
                break
        ring.drop()
        assert ring.over and ring.under_way == 0
        with pytest.raises(StageLost):
            ring.begin(step(3))
        assert isinstance(ends.get(timeout=60), LinkError)


def test_its_own_end_is_told_to_nobody() -> None:
    with ring_of() as (ring, _, ends):
        ring.close()
        assert ends.empty() and ring.over
        with pytest.raises(StageLost):
            ring.begin(step(1))


class Interrupted(Link):
    """While it is closed something else happens, as from another thread."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def close(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        super().close()


def test_a_step_that_begins_as_the_ring_is_closed_ends_too() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    out, back = (
        Interrupted(pairs[0][0], LinkEnds(HEAD, 0, 1), SETTINGS),
        Link(pairs[1][0], LinkEnds(1, HEAD, 1), SETTINGS),
    )
    ring = Ring(out, back, SHAPE, lambda _: None)
    out.meanwhile = lambda: ring.begin(step(1))
    ring.close()
    errors: SimpleQueue[BaseException] = SimpleQueue()

    def finish() -> None:
        try:
            ring.finish()
        except StageLost as error:
            errors.put(error)

    threading.Thread(target=finish, daemon=True).start()
    assert isinstance(errors.get(timeout=60), StageLost)
    for _, line in pairs:
        line.close()
