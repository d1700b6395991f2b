"""How a link ends: silence, a peer that is closed, killed or frozen, and waits that wake up; what heartbeats say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.errors import LinkClosed, LinkError, LinkFault, LinkSilent
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.links import Link
from tests.gpu_node.pipeline.pairs import (
    BEAT,
    BRISK,
    ENDS,
    HASTY,
    PATIENT,
    Pulse,
    beside,
    frame_bytes,
    header,
    hostile,
    linked,
)
from tests.potluck.cli.terminal import ROOT

ATTEMPTS = 50  # in which the machine may stand still for longer than a link is silent


def test_heartbeats_keep_a_wait_alive_until_the_callers_own_time_is_over() -> None:
    def kept_alive() -> bool:
        with hostile(BRISK) as (link, other), Pulse(other, BRISK.beat_seconds) as pulse:
            with pytest.raises(LinkSilent) as caught:
                link.receive(within_seconds=BRISK.silence_seconds * 1.5)
            late = pulse.longest_pause >= BRISK.silence_seconds
        if late and "has said nothing" in str(caught.value):
            return False
        assert "lives, and its answer has not come" in str(caught.value)
        assert link.counters.beats_received > 1
        return True

    assert any(kept_alive() for _ in range(ATTEMPTS))


def test_silence_is_noticed() -> None:
    with hostile(HASTY) as (link, _):
        with pytest.raises(LinkSilent, match="has said nothing"):
            link.receive()
        with pytest.raises(LinkSilent):
            link.send(header(1), b"x")


@pytest.mark.parametrize("count", [1, 63, 64, 70])
def test_silence_in_the_middle_of_a_frame_is_noticed(count: int) -> None:
    with hostile(HASTY) as (link, other):
        other.sendall(frame_bytes(b"0123456789")[:count])
        with pytest.raises(LinkSilent):
            link.receive()


def test_a_sender_whose_peer_takes_nothing_waits_while_it_lives_and_no_longer() -> None:
    size = BRISK.frame_bytes
    data = bytes(size)

    def waits() -> bool:
        with hostile(BRISK) as (link, other), beside(lambda: link.send(header(size), data)) as sending:
            with Pulse(other, BRISK.beat_seconds) as pulse:
                sending.join(BRISK.silence_seconds * 2.5)
                alive, late = sending.is_alive(), pulse.longest_pause >= BRISK.silence_seconds
            sending.join(60)
            assert isinstance(sending.error, LinkSilent)
        assert alive or late, "it lived all the time"
        return alive

    assert any(waits() for _ in range(ATTEMPTS))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 70, 74])
def test_the_other_side_ends(count: int) -> None:
    with hostile() as (link, other):
        other.sendall(frame_bytes(b"0123456789")[:count])
        other.close()
        if count == 74:
            assert bytes(link.receive().data) == b"0123456789"
        with pytest.raises(LinkClosed) as caught:
            link.receive()
        assert caught.value.in_frame is (0 < count < 74)
        with pytest.raises(LinkClosed):
            link.send(header(1), b"x")
        assert link.end is caught.value


def test_whoever_waits_wakes_up_when_its_own_side_closes() -> None:
    with linked() as (left, right):
        with beside(left.receive) as waiting:
            assert waiting.is_alive()
            left.close()
        assert isinstance(waiting.error, LinkClosed)
        with pytest.raises(LinkClosed):
            right.receive()
        left.close()
        assert not left.beat()
        assert not left.listen()


def test_a_hanging_send_wakes_up_when_the_link_is_failed() -> None:
    size = 1 << 22
    with hostile(LinkSettings(frame_bytes=size, beat_seconds=1, silence_seconds=20)) as (link, _):
        with beside(lambda: link.send(header(size), bytes(size))) as sending:
            reason = link.fail(LinkSilent("for this test"))
            assert link.fail(LinkClosed("too late")) is reason
        assert sending.error is reason


def test_a_beat_never_blocks_and_never_splits_a_frame() -> None:
    with hostile(LinkSettings(frame_bytes=1 << 22, beat_seconds=1, silence_seconds=20)) as (link, other):
        with beside(lambda: link.send(header(1 << 22), bytes(1 << 22))) as sending:
            while other.recv(1, socket.MSG_PEEK) == b"":
                pass
            assert not link.beat()  # a frame is under way
            taken = 0
            while taken < 64 + (1 << 22):
                taken += len(other.recv(1 << 16))
        assert sending.error is None
        while link.beat():  # until the kernel takes no more
            pass
        other.settimeout(1)
        assert other.recv(64) == link._beat
        assert link.end is None


def test_listening_takes_heartbeats_and_leaves_frames() -> None:
    with hostile() as (link, other):
        assert not link.listen()
        other.sendall(BEAT * 3)
        assert link.listen() and link.counters.beats_received == 3
        assert not link.listen()
        other.sendall(BEAT + frame_bytes(b"stays"))
        assert link.listen() and link.listen()  # it waits for whoever receives
        assert bytes(link.receive().data) == b"stays"
        assert link.listen()  # something came since
        assert not link.listen()
        other.close()
        assert not link.listen()
        assert isinstance(link.end, LinkClosed)


def test_listening_sees_what_no_stage_says() -> None:
    with hostile() as (link, other):
        other.sendall(b"\0" * 64)
        assert not link.listen()
        assert isinstance(link.end, LinkFault)


OTHER_PROCESS = """
import socket, sys
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.links import Link
from tests.gpu_node.pipeline.pairs import ENDS, PATIENT
with Heart() as heart, Link(socket.socket(fileno=int(sys.argv[1])), ENDS, PATIENT) as link:
    heart.add(link)
    print("ready", flush=True)
    link.receive(within_seconds=60)
"""


@pytest.mark.parametrize(("number", "error"), [(signal.SIGKILL, LinkClosed), (signal.SIGSTOP, LinkSilent)])
def test_a_killed_and_a_frozen_process_are_noticed(number: signal.Signals, error: type[LinkError]) -> None:
    """A frozen one by its silence, which is usually less than half a second; heartbeats keep the link until then."""
    assert LinkSettings().silence_seconds < 0.5
    settings = LinkSettings() if error is LinkSilent else PATIENT
    one, two = socket.socketpair()
    command = [sys.executable, "-c", OTHER_PROCESS, str(two.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[two.fileno()], stdout=subprocess.PIPE)
    with process, Link(one, ENDS, settings) as link, Heart() as heart:
        two.close()
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        heart.add(link)
        try:
            with beside(lambda: link.receive(within_seconds=60)) as waiting:
                while link.counters.beats_received < 3 and waiting.is_alive():
                    waiting.join(0.01)
                os.kill(process.pid, number)
        finally:
            process.kill()
    assert isinstance(waiting.error, error)
