"""Where links are made: over Unix sockets and TCP, with strangers at the door."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from gpu_node.errors import UsageError
from gpu_node.pipeline.ends import HEAD, LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkClosed, LinkFault, LinkRefused, LinkSilent
from gpu_node.pipeline.gate import LONGEST_PATH, MOST_GREETINGS, Gate, Place, connect_link
from tests.gpu_node.pipeline.pairs import PATIENT, beside, header
from wire.errors import OutOfBounds

ENDS = LinkEnds(HEAD, 0, 1)
TOKEN = "secret"
LOOPBACK: Place = ("127.0.0.1", 0)


@pytest.fixture(params=["unix", "tcp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return str(tmp_path / "stage.sock") if request.param == "unix" else LOOPBACK


def test_a_link_over_it_carries_frames_both_ways(place: Place) -> None:
    with Gate(place, TOKEN, PATIENT) as gate:
        with beside(lambda: connect_link(gate.place, ENDS, TOKEN, PATIENT)) as connecting:
            admitted = gate.admit([LinkEnds(0, 1, 1), ENDS], 20)
        with connecting.value as left, admitted as right:
            assert left.ends == right.ends == ENDS
            left.send(header(2), b"ab")
            right.send(header(3), b"cde")
            assert (bytes(right.receive().data), bytes(left.receive().data)) == (b"ab", b"cde")
    with pytest.raises(LinkClosed, match="nobody listens"):
        connect_link(gate.place, ENDS, TOKEN)


def test_each_side_keeps_to_what_the_other_takes_and_receives_where_it_wants(place: Place) -> None:
    rooms = (bytearray(8), bytearray(8))
    with Gate(place, TOKEN, LinkSettings(frame_bytes=8)) as gate:
        with beside(lambda: connect_link(gate.place, ENDS, TOKEN, PATIENT)) as connecting:
            admitted = gate.admit([ENDS], 20, rooms)
        with connecting.value as left, admitted as right:
            with pytest.raises(OutOfBounds, match="takes 8 at most"):
                left.send(header(9), bytes(9))
            left.send(header(8), bytes(8))
            assert right.receive().data.obj is rooms[0]


@pytest.mark.parametrize(
    ("token", "ends", "words"),
    [
        ("other", ENDS, "token"),
        (TOKEN, LinkEnds(HEAD, 1, 1), "no link between these stages"),
        (TOKEN, LinkEnds(HEAD, 0, 2), "another epoch"),
    ],
)
def test_who_does_not_belong_is_refused_and_the_next_is_let_in(
    place: Place, token: str, ends: LinkEnds, words: str
) -> None:
    with Gate(place, TOKEN, PATIENT) as gate:

        def come() -> None:
            with pytest.raises(LinkRefused, match=words):
                connect_link(gate.place, ends, token, PATIENT)
            connect_link(gate.place, ENDS, TOKEN, PATIENT).close()

        with beside(come) as coming:
            gate.admit([ENDS], 20).close()
        assert coming.error is None
        assert gate.refused == 1


def test_strangers_that_say_nothing_or_nonsense_do_not_keep_a_stage_out() -> None:
    with Gate(LOOPBACK, TOKEN, PATIENT) as gate:
        assert isinstance(gate.place, tuple)
        strangers = [socket.create_connection(gate.place) for _ in range(MOST_GREETINGS - 4)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        strangers[1].sendall(b"PLNK")
        strangers[2].close()
        with beside(lambda: connect_link(gate.place, ENDS, TOKEN, PATIENT)) as connecting:
            admitted = gate.admit([ENDS], 20)
        with connecting.value, admitted:
            assert gate.refused >= 2  # the one that spoke nonsense, and the one that left
        for stranger in strangers:
            stranger.close()


def test_only_so_many_greet_at_once() -> None:
    with Gate(LOOPBACK, TOKEN, PATIENT) as gate:
        assert isinstance(gate.place, tuple)
        strangers = [socket.create_connection(gate.place) for _ in range(MOST_GREETINGS)]
        with pytest.raises(LinkSilent):
            gate.admit([ENDS], 0.05)
        late = socket.create_connection(gate.place)
        with pytest.raises(LinkSilent):
            gate.admit([ENDS], 0.05)
        assert (gate.refused, late.recv(1)) == (1, b"")
        for stranger in (*strangers, late):
            stranger.close()


def test_nobody_comes(place: Place) -> None:
    with Gate(place, TOKEN) as gate, pytest.raises(LinkSilent, match="no link from stage 65535 to 0 was made within"):
        gate.admit([ENDS], 0.01)


def test_who_listens_and_does_not_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(LinkSilent, match="does not answer"):
            connect_link(path, ENDS, TOKEN, within_seconds=0.05)


@pytest.mark.parametrize("said", [b"", b"PLNK", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 4])
def test_who_listens_and_is_no_stage(tmp_path: Path, said: bytes) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            line, _ = listener.accept()
            with line:
                line.sendall(said)
                line.recv(1 << 10)

        with beside(answer), pytest.raises((LinkFault, LinkClosed)):
            connect_link(path, ENDS, TOKEN, within_seconds=20)


def test_a_unix_socket_is_its_owners_and_goes_with_its_gate(tmp_path: Path) -> None:
    path = tmp_path / "stage.sock"
    with Gate(str(path), TOKEN):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(UsageError, match="cannot be listened at"):
            Gate(str(path), TOKEN)
    assert not path.exists()


def test_places_and_tokens_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most"):
        Gate(str(tmp_path / ("x" * LONGEST_PATH)), TOKEN)
    with pytest.raises(UsageError, match="token"):
        Gate(LOOPBACK, "")
    with pytest.raises(UsageError, match="token"):
        connect_link(LOOPBACK, ENDS, "")
    with pytest.raises(LinkClosed, match="nobody listens"):
        connect_link(str(tmp_path / "none.sock"), ENDS, TOKEN)
