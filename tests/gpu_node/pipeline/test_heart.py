"""Heartbeats: what they keep alive, whom they find silent, and that nothing of it waits. The clock is a value."""

from __future__ import annotations

import threading

from gpu_node.pipeline.errors import LinkClosed, LinkSilent
from gpu_node.pipeline.heart import Heart
from tests.gpu_node.pipeline.pairs import BEAT, PATIENT, beside, frame_bytes, header, hostile, linked

SILENCE = PATIENT.silence_seconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_two_hearts_keep_a_link_for_ever() -> None:
    clock = Clock()
    one, two = Heart(clock=clock), Heart(clock=clock)
    with linked() as (left, right):
        one.add(left)
        two.add(right)
        for _ in range(50):
            clock.now += SILENCE * 0.9
            assert one.tick() == two.tick() == ()
        assert left.counters.beats_sent == 50
        assert left.counters.beats_received >= 49


def test_a_silent_one_is_found_once_and_told() -> None:
    clock = Clock()
    heart = Heart(clock=clock)
    with hostile() as (link, other):
        heart.add(link)
        clock.now += SILENCE
        assert heart.tick() == ()
        other.sendall(BEAT)
        clock.now += SILENCE
        assert heart.tick() == ()
        clock.now += SILENCE + 0.1
        assert heart.tick() == (link,)
        assert isinstance(link.end, LinkSilent) and "for 20.1 s" in str(link.end)
        assert heart.tick() == ()


def test_one_that_is_gone_is_found_at_once() -> None:
    heart = Heart(clock=Clock())
    with hostile() as (link, other):
        heart.add(link)
        other.close()
        assert heart.tick() == (link,)
        assert isinstance(link.end, LinkClosed)


def test_frames_are_signs_of_life_whoever_takes_them() -> None:
    clock = Clock()
    heart = Heart(clock=clock)
    with hostile() as (link, other):
        heart.add(link)
        for number in range(5):
            other.sendall(frame_bytes(b"x", number))
            if number % 2:  # taken between two rounds, or still waiting in the next one
                link.receive()
            clock.now += SILENCE + 1
            assert heart.tick() == ()
            if not number % 2:
                link.receive()


def test_a_link_that_is_waited_on_is_left_to_its_receiver() -> None:
    clock = Clock()
    heart = Heart(clock=clock)
    with linked() as (left, right):
        heart.add(left)
        with beside(left.receive) as waiting:
            while not left._receiving.locked():
                waiting.join(0.001)
            clock.now += SILENCE * 3
            assert heart.tick() == ()
            right.beat()
            right.send(header(1), b"x")
        assert bytes(waiting.value.data) == b"x"
        assert heart.tick() == ()


def test_one_that_was_taken_out_is_not_looked_after() -> None:
    clock = Clock()
    heart = Heart(clock=clock)
    with hostile() as (link, _):
        heart.add(link)
        heart.remove(link)
        heart.remove(link)
        clock.now += SILENCE * 2
        assert heart.tick() == ()
        assert link.end is None


def test_its_thread_beats_and_tells_of_ends() -> None:
    told = threading.Event()
    heart = Heart(beat_seconds=0.005)
    with hostile() as (link, other):
        heart.add(link)
        heart.start(lambda ended: told.set() if ended is link else None)
        other.settimeout(20)
        assert len(other.recv(64)) == 64
        other.close()
        assert told.wait(60)
        heart.stop()


def test_a_hanging_send_wakes_up_when_the_other_side_falls_silent() -> None:
    """The receiver lives at first, takes nothing, and then says nothing more."""
    clock = Clock()
    heart = Heart(clock=clock)
    with hostile() as (link, other):
        heart.add(link)
        many = PATIENT.frame_bytes
        with beside(lambda: [link.send(header(many), bytes(many)) for _ in range(200)]) as sending:
            other.sendall(BEAT)
            assert heart.tick() == ()
            clock.now += SILENCE + 1
            assert heart.tick() == (link,)
        assert isinstance(sending.error, LinkSilent)
