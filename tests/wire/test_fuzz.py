"""Whatever bytes come, whole or one at a time: frames, or a RemoteError, and never more memory than allowed."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.pipe import frame, frames_of, move, ready
from wire.connection import Connection
from wire.errors import RemoteError
from wire.frames import Flags, FrameType
from wire.limits import INITIAL_CONNECTION_CREDIT, LARGEST_PAYLOAD
from wire.state import ConnectionState, Role

T = FrameType
FRAMES = st.lists(
    st.tuples(
        st.sampled_from(T),
        st.one_of(st.just(0), st.integers(1, 4), st.integers(0, 0xFFFF)),
        st.binary(max_size=40),
        st.sampled_from([Flags.NONE, Flags.END, Flags.COMPRESSED]),
    ),
    max_size=12,
)


class RefusingCodec:
    def compress(self, data):
        return bytes(data)

    def decompress(self, data, size):
        raise ValueError("not a block")


def outcome(connection: Connection, parts: list[bytes]) -> tuple[str, list[tuple[object, ...]]]:
    error = ""
    try:
        for part in parts:
            connection.receive_data(part)
        connection.receive_end()
    except RemoteError as caught:
        error = type(caught).__name__
    frames = frames_of(connection.events_received())
    return error, [(one.type, one.stream_id, bytes(one.payload), one.ends) for one in frames]


def peer(role: Role, streams: int) -> Connection:
    """A connection that is ready, with some streams under way."""
    client, server = ready(codec=RefusingCodec())
    for number in range(streams):
        client.open_stream(T.GENERATE if number % 2 else T.READ, ends=bool(number % 2))
    move(client, server)
    server.data_to_send()
    return client if role is Role.CLIENT else server


def sequence_of(connection: Connection) -> int:
    return connection._receiver._reader._sequence


@pytest.mark.parametrize("role", Role)
@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes(role: Role, data: bytes) -> None:
    ones = [data[place : place + 1] for place in range(len(data))]
    assert outcome(Connection(role), [data]) == outcome(Connection(role), ones)


@pytest.mark.parametrize("role", Role)
@given(script=FRAMES, streams=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_any_order_of_good_frames(role: Role, script, streams: int) -> None:
    whole, single = peer(role, streams), peer(role, streams)
    first = sequence_of(whole)
    frames = [
        frame(
            kind, number, payload, sequence=first + place, flags=int(flags), ends=kind in (T.CANCEL, T.ERROR, T.GOODBYE)
        )
        for place, (kind, number, payload, flags) in enumerate(script)
    ]
    data = b"".join(frames)
    assert outcome(whole, [data]) == outcome(single, [data[place : place + 1] for place in range(len(data))])
    whole.data_to_send()


@given(payload=st.binary(min_size=1, max_size=60), bit=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_one_bit_that_changed_is_never_missed(payload: bytes, bit: int) -> None:
    client, server = ready()
    client.open_stream(T.GENERATE, payload, ends=True)
    data = bytearray(b"".join(client.data_to_send()))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    error, frames = outcome(server, [bytes(data)])
    assert error and frames == []
    assert server.state is ConnectionState.BROKEN


@given(cut=st.integers(0, 100), twice=st.booleans())
@settings(max_examples=50, deadline=None)
def test_frames_left_out_or_repeated(cut: int, twice: bool) -> None:
    client, server = ready()
    frames = []
    for number in range(5):
        client.open_stream(T.GENERATE, b"%d" % number, ends=True)
        frames.append(b"".join(client.data_to_send()))
    cut %= 4
    changed = [*frames[: cut + 1], frames[cut], *frames[cut + 1 :]] if twice else frames[:cut] + frames[cut + 1 :]
    error, heard = outcome(server, changed)
    assert error == "BadSequence" and len(heard) == cut + twice


@given(
    script=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=3000), st.booleans()), max_size=40),
    step=st.integers(1, 5000),
)
@settings(max_examples=60, deadline=None)
def test_interleaved_streams_arrive_whole_and_in_order(script, step: int) -> None:
    client, server = ready()
    streams = [client.open_stream(T.WRITE) for _ in range(4)]
    sent = {stream: b"" for stream in streams}
    heard = {stream: b"" for stream in streams}
    for which, payload, flush in script:
        client.send(T.DATA, streams[which], payload)
        sent[streams[which]] += payload
        if flush:
            _deliver(client, server, step, heard)
    _deliver(client, server, step, heard)
    assert heard == sent


def _deliver(client: Connection, server: Connection, step: int, heard: dict[int, bytes]) -> None:
    while data := b"".join(client.data_to_send(step)):
        for place in range(0, len(data), step):
            server.receive_data(data[place : place + step])
        for event in frames_of(server.events_received()):
            heard[event.stream_id] += bytes(event.payload)
            server.release(event)
        move(server, client)


def test_memory_stays_bounded_whatever_is_announced() -> None:
    server = peer(Role.SERVER, 0)
    sequence = sequence_of(server)
    chunk = bytes(LARGEST_PAYLOAD)
    tracemalloc.start()
    with pytest.raises(RemoteError):
        for number in range(200):
            server.receive_data(frame(T.WRITE, number + 1, chunk, sequence=sequence + number))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (16 << 20) + INITIAL_CONNECTION_CREDIT + 4 * LARGEST_PAYLOAD


def test_a_header_alone_takes_no_more_than_its_frame() -> None:
    connections = [peer(Role.SERVER, 0) for _ in range(20)]
    headers = [frame(T.HELLO, payload=bytes(LARGEST_PAYLOAD), sequence=0)[:16] for _ in range(20)]
    tracemalloc.start()
    for connection, header in zip(connections, headers, strict=True):
        with pytest.raises(RemoteError):
            connection.receive_data(header)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
