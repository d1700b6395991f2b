"""The short way of small answers: the same bytes, credit and events as the long way, and no way around any rule."""

from __future__ import annotations

import pytest

from tests.wire.pipe import frames_of, move, ready
from wire.connection import Connection
from wire.errors import BadChecksum, BadSequence, CreditExceeded, IllegalReceive
from wire.frames import FrameType
from wire.limits import FRAME_COST, INITIAL_STREAM_CREDIT
from wire.outbox import READY_MOST

T = FrameType
PAYLOADS = [b"", b"x", b"token" * 20, bytes(1023)]


def opened(kind: FrameType = T.GENERATE) -> tuple[Connection, Connection, int]:
    client, server = ready()
    stream = client.open_stream(kind, b"ask", ends=True)
    move(client, server)
    return client, server, stream


def sent(server: Connection) -> bytes:
    return b"".join(server.data_to_send())


def test_the_bytes_are_those_of_the_long_way() -> None:
    _, short, stream = opened()
    _, long, _ = opened()
    for payload in PAYLOADS:
        assert short.answer(T.TOKENS, stream, payload)
        long.send(T.TOKENS, stream, payload)
    assert short.wants_to_send and short.has_waiting(stream)
    assert sent(short) == sent(long)
    assert not short.wants_to_send and not short.has_waiting(stream)
    for one in (short, long):
        one.send(T.DONE, stream, b"end", ends=True)
    assert sent(short) == sent(long)
    assert short._books.outbox.credit.left == long._books.outbox.credit.left


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_heard_is_the_same_however_it_comes(step: int) -> None:
    client, server, stream = opened()
    for payload in PAYLOADS:
        server.send(T.TOKENS, stream, payload)
    data = sent(server)
    for place in range(0, len(data), step):
        client.receive_data(data[place : place + step])
    heard = frames_of(client.events_received())
    assert [bytes(event.payload) for event in heard] == PAYLOADS
    assert {(event.type, event.stream_id, event.ends, event.placed) for event in heard} == {
        (T.TOKENS, stream, False, False)
    }
    assert [event.cost for event in heard] == [len(payload) + FRAME_COST for payload in PAYLOADS]
    assert client._books.streams[stream].given.held == sum(event.cost for event in heard)
    assert all(event.payload.readonly for event in heard)


def test_nobody_is_overtaken() -> None:
    client, server, stream = opened()
    server.send(T.TOKENS, stream, b"first")
    assert not server.answer(T.TOKENS, stream, b"second")
    server.send(T.TOKENS, stream, b"second")
    move(server, client)
    assert server.answer(T.TOKENS, stream, b"third")
    server.send(T.TOKENS, stream, b"fourth")
    assert not server.answer(T.TOKENS, stream, b"fifth")
    assert [bytes(event.payload) for event in frames_of(move(server, client))] == [b"third", b"fourth"]


def test_what_has_its_place_comes_before_the_last_word() -> None:
    client, server, stream = opened()
    assert server.answer(T.TOKENS, stream, b"said")
    server.fail(stream, b"why")
    assert [event.type for event in frames_of(move(server, client))] == [T.TOKENS, T.ERROR]
    assert not server.open_streams


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(T.VECTORS, b"of another request"), (T.ERROR, b"?"), (T.CREDIT, b"1234"), (T.TOKENS, bytes(1024))],
)
def test_what_is_not_usual_goes_the_long_way(kind: FrameType, payload: bytes) -> None:
    client, server, stream = opened()
    assert not server.answer(kind, stream, payload)
    assert not server.answer(T.TOKENS, stream + 1, b"nobody asked")
    assert not client.answer(T.TOKENS, stream, b"of a client")
    assert not server.wants_to_send


def test_credit_and_the_queue_bound_it() -> None:
    _, server, stream = opened()
    taken = 0
    while server.answer(T.TOKENS, stream, bytes(1000)):
        taken += 1
    assert taken == -(-INITIAL_STREAM_CREDIT // (1000 + FRAME_COST))
    client, server, _ = opened()
    more = [client.open_stream(T.GENERATE, b"ask", ends=True) for _ in range(3)]
    move(client, server)
    put = sum(1000 for each in more for _ in range(40) if server.answer(T.TOKENS, each, bytes(1000)))
    assert READY_MOST - 1000 < put <= READY_MOST + 1000


def test_a_cancelled_stream_is_answered_no_more() -> None:
    client, server, stream = opened()
    client.cancel(stream)
    move(client, server)
    assert not server.answer(T.TOKENS, stream, b"late")


def test_a_frame_that_is_wrong_is_refused_as_ever() -> None:
    for fault, expected in ((11, BadSequence), (15, BadChecksum), (20, BadChecksum)):
        client, server, stream = opened()
        server.answer(T.TOKENS, stream, b"good")
        server.answer(T.TOKENS, stream, b"changed")
        data = bytearray(sent(server))
        data[20 + fault] ^= 1
        with pytest.raises(expected):
            client.receive_data(data)
        assert [bytes(event.payload) for event in frames_of(client.events_received())] == [b"good"]


def test_a_frame_without_credit_or_question_is_refused_as_ever() -> None:
    client, server, stream = opened()
    client._books.streams[stream].given.left = 0
    server.answer(T.TOKENS, stream, b"too much")
    with pytest.raises(CreditExceeded):
        client.receive_data(sent(server))
    client, server, stream = opened()
    stranger, _, _ = opened(T.EMBED)
    server.answer(T.TOKENS, stream, b"?")
    with pytest.raises(IllegalReceive):
        stranger.receive_data(sent(server))
