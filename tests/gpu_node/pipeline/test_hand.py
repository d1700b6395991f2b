"""A worker as its head knows it: what it says, when it is silent, and that gone is gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpu_node.devices import parse_devices
from gpu_node.pipeline.control import ControlLink
from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.hand import Hand
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.order_codec import MESSAGE_BYTES
from gpu_node.pipeline.orders import Busy, Done, Hello, Progress, Report, control_ends

(DEVICE,) = parse_devices("cpu:1GiB")
HELLO = Hello(1, "/x", "cpu:0", 10, 5, 0.1)
SETTINGS = LinkSettings(MESSAGE_BYTES, beat_seconds=1.0, silence_seconds=20.0)


class Process:
    pid = 5

    def __init__(self) -> None:
        self.ending, self.killed = "", 0

    def kill(self) -> None:
        self.killed += 1
        self.ending = "its process was killed by signal 9"

    def wait(self, within_seconds: float) -> bool:
        return bool(self.ending)


class Changes(threading.Condition):
    """Counts what the hand tells of: a frame has come before it is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def notify_all(self) -> None:
        self.told += 1
        super().notify_all()


class Scene:
    def __init__(self, worker: ControlLink, changed: Changes) -> None:
        self.worker, self.changed, self.now, self.process = worker, changed, 0.0, Process()
        self.at_work = False
        self.hand = Hand(DEVICE, 0, self.process, changed, lambda: self.now, lambda _: self.at_work)

    def heard(self, said: object) -> None:
        """The worker says something, and the head has noted it."""
        before = self.changed.told
        self.worker.send(said)
        with self.changed:
            assert self.changed.wait_for(lambda: self.changed.told > before or self.hand.gone, 60)

    def look(self, now: float) -> str:
        self.now = now
        self.hand.look(now, silence_seconds=0.4, loading_seconds=5.0)
        return self.hand.gone


@contextmanager
def scene() -> Iterator[Scene]:
    one, two = socket.socketpair()
    with Link(one, control_ends(0), SETTINGS) as head, Link(two, control_ends(0), SETTINGS) as worker:
        made = Scene(ControlLink(worker), Changes())
        made.hand.admit(head)
        made.heard(HELLO)
        try:
            yield made
        finally:
            made.process.ending = made.process.ending or "its process ended with code 0"
            made.hand.end(0)


def test_what_it_says_is_noted() -> None:
    with scene() as it:
        hand = it.hand
        hand.awaited.add(7)
        hand.loading.add(7)
        it.heard(Progress(7, 1, 3))
        assert hand.hello == HELLO and hand.progress == {7: (1, 3)}
        it.heard(Done(7))
        assert hand.answers == {7: Done(7)} and not hand.progress and not hand.loading and not hand.awaited
        it.heard(Report(1, 12, 30, 0.5, 1, 2, 3, 4))
        assert hand.steps == 12


def test_answers_that_nobody_awaits_any_more_are_dropped() -> None:
    with scene() as it:
        it.hand.awaited.update((7, 8))
        it.hand.forget(7)
        it.heard(Done(7))
        it.heard(Done(8))
        assert it.hand.answers == {8: Done(8)}


def test_silence_is_death_within_half_a_second() -> None:
    with scene() as it:
        assert not it.look(0.0)
        assert not it.look(0.4)
        it.worker.link.beat()
        it.heard(Progress(1, 0, 1))
        assert not it.look(0.5)
        assert not it.look(0.9)
        assert it.look(0.91) == "it has said nothing for 0.4 s"


def test_who_loads_may_be_silent_for_longer() -> None:
    with scene() as it:
        assert not it.look(0.0)
        it.hand.loading.add(3)
        assert not it.look(4.9)
        assert "5.1 s" in it.look(5.1)


def test_who_computes_may_be_silent_for_as_long() -> None:
    """Its interpreter is held by a call, or other work has all processors."""
    with scene() as it:
        it.at_work = True
        assert not it.look(0.1) and not it.look(5.0)
        it.at_work = False
        assert it.look(5.05)
    with scene() as it:
        it.at_work = True
        assert not it.look(0.1) and not it.look(5.0) and it.look(5.2)


def test_who_said_so_may_be_silent_as_long_as_it_said() -> None:
    with scene() as it:
        it.heard(Busy(3.0))
        assert not it.look(0.1)
        assert not it.look(2.9)
        assert it.look(3.1)


def test_while_the_head_slept_nobody_was_silent() -> None:
    with scene() as it:
        assert not it.look(0.0)
        it.hand.forgive(2.0)
        assert not it.look(2.3)
        assert it.look(2.5)


def test_an_end_of_its_link_is_its_end_with_the_process_own_reason() -> None:
    with scene() as it:
        it.process.ending = "its process ended with code 3: no luck"
        it.worker.link.close()
        with it.changed:
            assert it.changed.wait_for(lambda: it.hand.gone, 60)
        assert it.hand.gone == "its process ended with code 3: no luck"
        it.hand.lose("another reason")
        it.hand.send(Done(1))
        assert "no luck" in it.hand.gone


@pytest.mark.parametrize("told", [True, False])
def test_who_is_gone_is_killed_and_who_was_told_is_waited_for(told: bool) -> None:
    with scene() as it:
        if told:
            it.hand.dismissed, it.process.ending = True, "its process ended with code 0"
        else:
            it.hand.lose("it is frozen")
        it.hand.end(0)
        assert it.process.killed == (not told)


def test_who_is_let_in_after_its_end_is_not_kept() -> None:
    """The gate had greeted it when it was given up."""
    one, two = socket.socketpair()
    with Link(one, control_ends(0), SETTINGS) as head, Link(two, control_ends(0), SETTINGS):
        hand = Hand(DEVICE, 0, Process(), threading.Condition(), lambda: 0.0)
        hand.end(0)
        assert not hand.admit(head)
        assert hand.link is None and head.end is not None
