"""One slow reader stalls nobody, nor do a thousand: how streams share the connection's window and its queue."""

from __future__ import annotations

import pytest

from tests.wire.pipe import frames_of, move, ready
from wire.connection import Connection
from wire.errors import QueueFull
from wire.flow import cost_of
from wire.frames import FrameType
from wire.limits import INITIAL_STREAM_CREDIT, LARGEST_PAYLOAD, SMALLEST_CUT, Limits

T = FrameType
MIB = 1 << 20
STREAMS = 1000
ZEROS = memoryview(bytes(MIB))


def fill(server: Connection, stream: int, kind: FrameType, size: int) -> None:
    """As a sender does it that waits for room: one frame more is always held by who waits."""
    payload = ZEROS[:size]
    try:
        while True:
            server.send(kind, stream, payload)
    except QueueFull:
        return


def streamed(client: Connection, server: Connection, stream: int, kind: FrameType, size: int, rounds: int) -> int:
    """Bytes that arrive on the one stream that is read."""
    arrived = 0
    for _ in range(rounds):
        if server.room(stream) >= size:
            server.send(kind, stream, bytes(size))
        for event in frames_of(move(server, client)):
            if event.stream_id == stream:
                arrived += len(event.payload)
                client.release(event)
        move(client, server)
    return arrived


@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize(("request_kind", "kind", "size"), [(T.READ, T.DATA, MIB), (T.GENERATE, T.TOKENS, 4000)])
def test_a_thousand_streams_that_nobody_reads_leave_one_that_is_read_alone(
    request_kind: FrameType, kind: FrameType, size: int, widen: bool
) -> None:
    client, server = ready()
    streams = [client.open_stream(request_kind, b"x", ends=True) for _ in range(STREAMS)]
    move(client, server)
    if widen:
        for stream in streams[:-1]:
            client.widen(stream)
        move(client, server)
    for stream in streams[:-1]:
        fill(server, stream, kind, size)
        move(server, client)
    for stream in streams[:-1]:
        fill(server, stream, kind, size)
    held = client._books.given.held
    assert held <= Limits().connection_window
    rounds = 40
    least = rounds // 2 * min(size, INITIAL_STREAM_CREDIT // 2)
    assert streamed(client, server, streams[-1], kind, size, rounds) >= least
    assert client._books.given.held <= held + MIB  # what was widened may still take its rest


def test_bulk_streams_get_less_the_more_there_are_and_more_when_others_end() -> None:
    client, server = ready()
    limits = Limits()
    streams = [client.open_stream(T.READ, b"x", ends=True) for _ in range(8)]
    move(client, server)
    for stream in streams:
        client.widen(stream)
    windows = [client._books.streams[stream].given.window for stream in streams]
    assert windows[0] == limits.bulk_window and windows == sorted(windows, reverse=True)
    assert windows[-1] < limits.bulk_window
    assert sum(windows) - len(streams) * INITIAL_STREAM_CREDIT <= limits.connection_window * 3 // 4
    move(client, server)
    for stream in streams[:2]:
        server.send(T.DATA, stream, ends=True)
    move(server, client)
    assert client._books.streams[streams[2]].given.window == limits.bulk_window


def test_tensor_bytes_are_cut_to_the_credit_and_nothing_else_is() -> None:
    client, server = ready()
    read, tokens = client.open_stream(T.READ, b"x", ends=True), client.open_stream(T.GENERATE, b"x", ends=True)
    move(client, server)
    data = bytes(range(256)) * 1024
    server.send(T.DATA, read, data, ends=True)
    server.send(T.TOKENS, tokens, data)
    first, whole = frames_of(move(server, client))
    assert len(first.payload) == INITIAL_STREAM_CREDIT - cost_of(0) and not first.ends
    assert bytes(whole.payload) == data
    found = bytes(first.payload)
    client.release(first)
    while len(found) < len(data):
        move(client, server)
        [event] = frames_of(move(server, client))
        found += event.payload
        assert event.ends == (len(found) == len(data))
        client.release(event)
    assert found == data and server._books.outbox._queued == 0


def test_no_crumbs_are_cut() -> None:
    client, server = ready()
    stream = client.open_stream(T.READ, b"x", ends=True)
    move(client, server)
    server.send(T.DATA, stream, bytes(INITIAL_STREAM_CREDIT - 300))
    server.send(T.DATA, stream, bytes(LARGEST_PAYLOAD))
    sizes = [len(event.payload) for event in frames_of(move(server, client))]
    assert sizes == [INITIAL_STREAM_CREDIT - 300, SMALLEST_CUT]


def test_a_stream_with_nothing_waiting_always_has_room_for_a_frame() -> None:
    client, server = ready(Limits(connection_queue=2 * MIB))
    full, other = (client.open_stream(T.EMBED, b"x", ends=True) for _ in range(2))
    move(client, server)
    server.send(T.VECTORS, full, bytes(MIB))
    with pytest.raises(QueueFull):
        server.send(T.VECTORS, full, bytes(MIB))
    assert server.room(other) == LARGEST_PAYLOAD
    server.send(T.VECTORS, other, bytes(MIB))
    with pytest.raises(QueueFull):
        server.send(T.VECTORS, other, b"")


def test_what_is_held_of_streams_that_are_over_counts_in_full() -> None:
    client, server = ready()
    held = []
    for _ in range(100):
        stream = client.open_stream(T.GENERATE, b"x", ends=True)
        move(client, server)
        server.send(T.TOKENS, stream, bytes(60_000), ends=True)
        held += frames_of(move(server, client))
        move(client, server)
    assert client._books.given.held == sum(event.cost for event in held)
    for event in held:
        client.release(event)
    assert client._books.given.held == 0
