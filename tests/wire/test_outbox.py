"""What leaves, in which order, and how much may wait when the peer does not read."""

from __future__ import annotations

import pytest

from tests.wire.pipe import frame, frames_of, move, ready, server_ready, settle
from wire.connection import Connection, CreditReceived
from wire.errors import IllegalSend, OutOfBounds, QueueFull, TooLarge
from wire.frames import FrameType
from wire.limits import Limits
from wire.outbox import JOINED_MOST
from wire.state import ConnectionState

T = FrameType


def types_of(connection: Connection) -> list[int]:
    """Types of the frames that leave, each with a small payload."""
    return [piece[0] for piece in connection.data_to_send()]


def test_small_payloads_leave_with_their_header_and_large_ones_uncopied() -> None:
    client, _ = ready()
    small, large = b"s" * (JOINED_MOST - 1), b"l" * JOINED_MOST
    client.open_stream(T.WRITE, small)
    client.open_stream(T.WRITE, b"", large)
    first, header, second = client.data_to_send()
    assert len(first) == 16 + len(small) and len(header) == 16
    assert second is large


def test_a_peer_that_sends_and_never_reads_is_owed_one_credit_a_stream() -> None:
    client, server = ready(client_limits=Limits(control_frames=3), limits=Limits(control_frames=3))
    streams = [client.open_stream(T.WRITE) for _ in range(10)]
    move(client, server)
    settle(client, server)
    for _ in range(5):
        for number in streams:
            client.send(T.DATA, number, bytes(12_000))
        for event in frames_of(move(client, server)):  # nothing of the server's is read
            server.release(event)
    told = move(server, client)
    credits = [event.stream_id for event in told if isinstance(event, CreditReceived)]
    assert sorted(credits) == streams
    books, theirs = server._books, client._books
    assert books.given.left == theirs.outbox.credit.left
    for number in streams:
        assert books.streams[number].given.left == theirs.streams[number].line.credit.left


def test_all_streams_may_end_at_once() -> None:
    client, server = ready()
    for _ in range(Limits().streams):
        client.open_stream(T.STATS, ends=True)
    assert len(frames_of(move(client, server))) == Limits().streams
    for number in server.open_streams:
        server.fail(number, b"the node ends")
    server.goodbye()
    assert len(frames_of(move(server, client))) == Limits().streams + 1
    assert client.open_streams == ()


@pytest.mark.parametrize("end", ["done", "fail", "goodbye", "abandon"])
def test_no_credit_follows_the_last_word(end: str) -> None:
    client, server = ready()
    number = client.open_stream(T.WRITE, bytes(40_000))
    [event] = frames_of(move(client, server))
    server.release(event)
    assert server.wants_to_send  # credit for what it took
    match end:
        case "done":
            server.send(T.ACK, number, ends=True)
        case "fail":
            server.fail(number)
        case "goodbye":
            server.fail(number)
            server.goodbye()
        case _:
            server.abandon()
    expected = {"done": [T.ACK], "fail": [T.ERROR], "goodbye": [T.ERROR, T.GOODBYE], "abandon": [T.ERROR]}
    assert types_of(server) == expected[end]


def test_a_client_that_leaves_gives_no_credit() -> None:
    client, server = ready()
    number = client.open_stream(T.READ, ends=True)
    move(client, server)
    server.send(T.DATA, number, bytes(60_000))
    [event] = frames_of(move(server, client))
    client.release(event)
    client.goodbye()
    assert types_of(client) == [T.GOODBYE]


def test_credit_of_a_stream_that_is_over_is_not_given_to_the_next_of_its_number() -> None:
    client, server = ready()
    number = client.open_stream(T.READ, ends=True)
    move(client, server)
    server.send(T.DATA, number, bytes(60_000))
    server.send(T.DATA, number, ends=True)
    for event in frames_of(move(server, client)):
        client.release(event)
    client._last_number = 0
    assert client.open_stream(T.READ, ends=True) == number
    move(client, server)
    settle(client, server)
    assert server._books.streams[number].line.credit.left == client._books.streams[number].given.left


def test_the_last_word_gets_out_however_much_waits() -> None:
    server = server_ready(limits=Limits(control_frames=2))
    for number in range(2):
        server.receive_data(frame(T.PING, sequence=number + 1))
    with pytest.raises(QueueFull):
        server.send(T.PING, 0)
    with pytest.raises(TooLarge):
        server.receive_data(frame(T.PING, sequence=3))
    server.abandon(b"flood")
    assert types_of(server) == [T.PONG, T.PONG, T.ERROR] and server.state is ConnectionState.CLOSED
    other = server_ready(limits=Limits(control_frames=1))
    other.receive_data(frame(T.PING, sequence=1))
    other.goodbye()
    with pytest.raises(IllegalSend):
        other.goodbye()
    assert types_of(other) == [T.PONG, T.GOODBYE]


def test_the_sequence_goes_on_at_0_after_its_largest_number() -> None:
    client, server = ready()
    for sender, receiver in ((client, server), (server, client)):
        sender._books.outbox._sequence = receiver._receiver._reader._sequence = 0xFFFF_FFFE
    number = client.open_stream(T.WRITE)
    for _ in range(4):
        client.send(T.DATA, number, b"x")
        assert len(frames_of(move(client, server))) in (1, 2)
        server.send(T.ACK, number)
        assert len(frames_of(move(server, client))) == 1
    assert client._books.outbox._sequence == 3 and server._books.outbox._sequence == 2


def test_a_frame_given_back_twice_takes_nothing_from_others() -> None:
    client, server = ready()
    client.open_stream(T.GENERATE, b"one", ends=True)
    client.open_stream(T.GENERATE, b"two", ends=True)
    first, second = frames_of(move(client, server))
    server.release(first)
    held = server._books.given.held
    with pytest.raises(OutOfBounds):
        server.release(first)
    assert server._books.given.held == held
    server.release(second)
    assert server._books.given.held == 0
