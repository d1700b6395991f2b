from __future__ import annotations

import tracemalloc

import pytest

from tests.wire.pipe import frame, frames_of, move, ready, server_ready, settle
from wire.connection import Connection, CreditReceived
from wire.errors import (
    CreditExceeded,
    CutShort,
    IllegalReceive,
    IllegalSend,
    OutOfBounds,
    QueueFull,
    TooLarge,
)
from wire.frames import FrameType
from wire.limits import INITIAL_CONNECTION_CREDIT, LARGEST_PAYLOAD, Limits
from wire.state import ConnectionState, Role

T = FrameType


def test_a_request_is_answered() -> None:
    client, server = ready()
    stream = client.open_stream(T.GENERATE, b"why ", b"blue", ends=True)
    [asked] = frames_of(move(client, server))
    assert (asked.type, asked.stream_id, bytes(asked.payload), asked.ends) == (T.GENERATE, stream, b"why blue", True)
    server.send(T.TOKENS, stream, b"sky")
    server.send(T.DONE, stream, b"stop", ends=True)
    told = frames_of(move(server, client))
    assert [(one.type, bytes(one.payload), one.ends) for one in told] == [
        (T.TOKENS, b"sky", False),
        (T.DONE, b"stop", True),
    ]
    assert client.open_streams == server.open_streams == ()


def test_credit_never_overtakes_the_request_that_it_is_for() -> None:
    client, _ = ready()
    stream = client.open_stream(T.READ, b"all of it", ends=True)
    client.widen(stream)  # before the request has left: credit would be for a stream that nobody knows
    first, *_ = client.data_to_send()
    assert first[0] == T.READ


def test_the_handshake_with_a_challenge() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    client.send(T.HELLO, 0, b"nonce")
    move(client, server)
    server.send(T.WELCOME, 0, b"challenge")
    [challenge] = frames_of(move(server, client))
    assert not challenge.ends and client.state is ConnectionState.CHALLENGED
    with pytest.raises(IllegalSend):
        client.open_stream(T.STATS, ends=True)
    client.send(T.HELLO, 0, b"proof")
    move(client, server)
    server.send(T.WELCOME, 0, ends=True)
    settle(client, server)
    assert client.state is server.state is ConnectionState.READY


def test_payloads_leave_as_the_buffers_they_came_in() -> None:
    client, _ = ready()
    tensor = bytearray(1_000_000)
    client.open_stream(T.WRITE, b"header", tensor)
    assert any(piece is tensor for piece in client.data_to_send())


def test_bulk_goes_into_the_room_named_for_it_without_a_copy() -> None:
    client, server = ready()
    stream = client.open_stream(T.WRITE, b"where")
    move(client, server)
    room, chunk = bytearray(4 << 20), bytes(range(256)) * 4096
    server.receive_into(stream, memoryview(room))
    move(server, client)
    for number in range(4):
        client.send(T.DATA, stream, chunk, ends=number == 3)
    data = memoryview(b"".join(client.data_to_send(8 << 20)))
    tracemalloc.start()
    while data:
        buffer = server.get_buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        server.buffer_updated(count)
        data = data[count:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10
    assert bytes(room) == chunk * 4
    assert [(event.placed, event.ends) for event in frames_of(server.events_received())] == [
        (True, False),
        (True, False),
        (True, False),
        (True, True),
    ]


def test_data_beyond_the_room_is_the_peers_fault() -> None:
    client, server = ready()
    stream = client.open_stream(T.WRITE)
    move(client, server)
    server.receive_into(stream, memoryview(bytearray(10)))
    client.send(T.DATA, stream, b"x" * 11)
    with pytest.raises(TooLarge):
        move(client, server)


def test_room_that_is_named_while_a_frame_is_on_its_way_begins_with_that_frame() -> None:
    client, server = ready()
    stream = client.open_stream(T.WRITE)
    move(client, server)
    client.send(T.DATA, stream, b"a" * 100)
    client.send(T.DATA, stream, b"b" * 50, ends=True)
    sent = b"".join(client.data_to_send())
    server.receive_data(sent[:60])
    room = bytearray(150)
    server.receive_into(stream, memoryview(room))
    server.receive_data(sent[60:])
    assert [event.placed for event in frames_of(server.events_received())] == [True, True]
    assert room == b"a" * 100 + b"b" * 50


def test_rooms_are_let_go_with_the_answer_and_when_they_are_forgotten() -> None:
    client, server = ready()
    answered, forgotten = client.open_stream(T.WRITE), client.open_stream(T.WRITE)
    move(client, server)
    rooms = bytearray(100), bytearray(100)
    for stream, room in zip((answered, forgotten), rooms, strict=True):
        server.receive_into(stream, memoryview(room))
        client.send(T.DATA, stream, b"a" * 50)
    sent = b"".join(client.data_to_send())
    server.fail(answered, b"no")
    server.receive_data(sent[:-20])
    server.forget_rooms()
    server.receive_data(sent[-20:])
    assert rooms == (bytes(100), b"a" * 30 + bytes(70))
    [event] = frames_of(server.events_received())
    assert (event.stream_id, bytes(event.payload), event.placed) == (forgotten, b"a" * 50, False)
    rooms[1].extend(b"nobody holds it any more")


@pytest.mark.parametrize("room", [memoryview(b"fixed"), memoryview(bytearray(0)), memoryview(bytearray(8))[::2]])
def test_room_must_be_fit_to_receive_into(room: memoryview) -> None:
    client, _ = ready()
    stream = client.open_stream(T.READ, ends=True)
    with pytest.raises(OutOfBounds):
        client.receive_into(stream, room)


def test_a_slow_stream_stalls_nobody() -> None:
    client, server = ready()
    slow, quick = client.open_stream(T.READ, ends=True), client.open_stream(T.GENERATE, ends=True)
    move(client, server)
    for _ in range(20):
        server.send(T.DATA, slow, bytes(100_000))
    held = frames_of(move(server, client))
    assert len(held) == 1 and not server.wants_to_send  # its credit is spent
    for number in range(1000):
        server.send(T.TOKENS, quick, b"%d" % number)
        [token] = frames_of(move(server, client))
        assert bytes(token.payload) == b"%d" % number
        client.release(token)
        move(client, server)
    for event in held:
        client.release(event)
    assert CreditReceived(slow) in move(client, server)
    assert frames_of(move(server, client))


def test_streams_take_turns() -> None:
    client, server = ready()
    streams = [client.open_stream(T.GENERATE, ends=True) for _ in range(3)]
    move(client, server)
    for stream in streams:
        for _ in range(3):
            server.send(T.TOKENS, stream, b"x")
    assert [event.stream_id for event in frames_of(move(server, client))] == streams * 3


def test_what_waits_is_bounded() -> None:
    client, _ = ready(
        client_limits=Limits(stream_queue=LARGEST_PAYLOAD + 256, connection_queue=LARGEST_PAYLOAD + (1 << 19))
    )
    stream = client.open_stream(T.WRITE)
    room = client.room(stream)
    client.send(T.DATA, stream, bytes(room))
    assert client.room(stream) == 0
    with pytest.raises(QueueFull):
        client.send(T.DATA, stream, b"x")
    with pytest.raises(QueueFull):
        client.open_stream(T.WRITE, bytes(600_000))
    assert client.open_streams == (stream,)


def test_a_sender_beyond_its_credit_is_refused_before_there_is_room() -> None:
    server = server_ready()
    server.receive_data(frame(T.WRITE, 1, sequence=1))
    server.receive_data(frame(T.DATA, 1, bytes(LARGEST_PAYLOAD), sequence=2))
    with pytest.raises(CreditExceeded):
        server.receive_data(frame(T.DATA, 1, bytes(LARGEST_PAYLOAD), sequence=3)[:16])


def test_many_streams_together_are_bounded_by_the_connection() -> None:
    server = server_ready(limits=Limits(connection_window=INITIAL_CONNECTION_CREDIT))
    taken = 0
    with pytest.raises(CreditExceeded):
        for number in range(1, 100):
            server.receive_data(frame(T.WRITE, number, bytes(1 << 19), sequence=number))
            taken += 1
    assert taken * (1 << 19) <= INITIAL_CONNECTION_CREDIT + LARGEST_PAYLOAD


def test_empty_frames_cost_too() -> None:
    server = server_ready()
    server.receive_data(frame(T.WRITE, 1, sequence=1))
    with pytest.raises(CreditExceeded):
        for number in range(2, 1000):
            server.receive_data(frame(T.DATA, 1, sequence=number))
    assert len(server.events_received()) <= 256


def test_a_payload_given_back_twice_is_our_own_fault() -> None:
    client, server = ready()
    client.open_stream(T.GENERATE, b"x", ends=True)
    [event] = frames_of(move(client, server))
    server.release(event)
    with pytest.raises(OutOfBounds):
        server.release(event)


def test_a_payload_may_be_given_back_after_its_stream_is_over_and_its_number_used_again() -> None:
    client, server = ready()
    stream = client.open_stream(T.GENERATE, b"x" * 50_000, ends=True)
    [old] = frames_of(move(client, server))
    server.send(T.DONE, stream, ends=True)
    move(server, client)
    client._last_number = 0
    assert client.open_stream(T.GENERATE, b"y", ends=True) == stream
    [new] = frames_of(move(client, server))
    server.release(old)
    server.release(new)
    server.send(T.DONE, stream, ends=True)
    assert [event.type for event in frames_of(move(server, client))] == [T.DONE]


def test_cancelling_ends_with_the_servers_end() -> None:
    client, server = ready()
    stream = client.open_stream(T.GENERATE, ends=True)
    move(client, server)
    server.send(T.TOKENS, stream, b"unheard")
    assert client.cancel(stream)
    assert [event.type for event in frames_of(move(client, server))] == [T.CANCEL]
    server.fail(stream, b"cancelled")
    told = frames_of(move(server, client))
    assert [(event.type, event.ends) for event in told] == [(T.ERROR, True)]
    assert client.open_streams == server.open_streams == ()


def test_cancelling_what_was_never_sent_sends_nothing() -> None:
    client, _ = ready()
    stream = client.open_stream(T.GENERATE, ends=True)
    assert not client.cancel(stream)
    assert client.data_to_send() == [] and client.open_streams == ()


def test_a_cancel_that_crosses_the_end_is_without_effect() -> None:
    client, server = ready()
    stream = client.open_stream(T.GENERATE, ends=True)
    move(client, server)
    server.send(T.DONE, stream, ends=True)
    done = b"".join(server.data_to_send())
    client.cancel(stream)
    client.receive_data(done)
    assert move(client, server) == []
    assert client.open_streams == server.open_streams == ()


def test_an_early_answer_ends_the_clients_half_as_well() -> None:
    client, server = ready()
    stream = client.open_stream(T.WRITE)
    move(client, server)
    server.fail(stream, b"no room")
    client.send(T.DATA, stream, b"late")
    late = b"".join(client.data_to_send())
    move(server, client)
    server.receive_data(late)
    assert move(client, server) == []
    assert client.open_streams == server.open_streams == ()


def test_goodbyes() -> None:
    client, server = ready()
    stream = client.open_stream(T.GENERATE, ends=True)
    move(client, server)
    server.goodbye(b"drain")
    move(server, client)
    with pytest.raises(IllegalSend):
        client.open_stream(T.STATS, ends=True)
    server.send(T.DONE, stream, ends=True)
    assert [event.type for event in frames_of(move(server, client))] == [T.DONE]
    client.goodbye()
    assert [event.type for event in frames_of(move(client, server))] == [T.GOODBYE]
    assert client.state is server.state is ConnectionState.CLOSED
    server.receive_data(b"whatever follows")
    server.receive_end()


def test_a_client_that_leaves_hears_the_servers_last_word() -> None:
    client, server = ready()
    client.open_stream(T.GENERATE, ends=True)
    client.goodbye()
    move(client, server)
    assert server.state is ConnectionState.LEAVING
    server.goodbye()
    assert [event.type for event in frames_of(move(server, client))] == [T.GOODBYE]
    assert client.state is server.state is ConnectionState.CLOSED


def test_a_ping_is_answered_with_what_it_carried() -> None:
    client, server = ready()
    client.send(T.PING, 0, b"12:00")
    assert [event.type for event in frames_of(move(client, server))] == [T.PING]
    [pong] = frames_of(move(server, client))
    assert (pong.type, bytes(pong.payload)) == (T.PONG, b"12:00")


def test_pings_whose_answers_are_never_read_end_the_connection() -> None:
    server = server_ready(limits=Limits(control_frames=10))
    with pytest.raises(TooLarge):
        for number in range(20):
            server.receive_data(frame(T.PING, sequence=number + 1))


def test_an_answer_that_does_not_fit_its_request() -> None:
    client, server = ready()
    stream = client.open_stream(T.STATS, ends=True)
    move(client, server)
    with pytest.raises(IllegalSend):
        server.send(T.TOKENS, stream)
    with pytest.raises(IllegalReceive):
        client.receive_data(frame(T.TOKENS, stream, sequence=2))


def test_more_streams_than_agreed() -> None:
    client, server = ready(Limits(streams=1), client_limits=Limits(streams=2))
    client.open_stream(T.STATS, ends=True)
    client.open_stream(T.STATS, ends=True)
    with pytest.raises(QueueFull):
        client.open_stream(T.STATS, ends=True)
    with pytest.raises(TooLarge):
        move(client, server)


def test_an_end_within_a_frame() -> None:
    server = server_ready()
    server.receive_end()
    server.receive_data(frame(T.PING, sequence=1)[:5])
    with pytest.raises(CutShort):
        server.receive_end()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda client, server, stream: client.send(T.PING, 0, bytes(4097)),
        lambda client, server, stream: client.send(T.DATA, stream, bytes(LARGEST_PAYLOAD + 1)),
        lambda client, server, stream: client.send(T.CREDIT, 0, b"\0\0\0\1"),
        lambda client, server, stream: client.send(T.DATA, 77),
        lambda client, server, stream: client.send(T.PING, 0, ends=True),
        lambda client, server, stream: client.fail(stream),
        lambda client, server, stream: server.cancel(stream),
        lambda client, server, stream: server.open_stream(T.STATS),
        lambda client, server, stream: client.open_stream(T.TOKENS),
        lambda client, server, stream: server.send(T.GENERATE, stream),
    ],
)
def test_our_own_misuse_sends_nothing(misuse) -> None:
    client, server = ready()
    stream = client.open_stream(T.WRITE)
    move(client, server)
    with pytest.raises((IllegalSend, OutOfBounds)):
        misuse(client, server, stream)
    assert not client.wants_to_send and not server.wants_to_send
