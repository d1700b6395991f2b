from __future__ import annotations

import zlib

import pytest

from tests.wire.pipe import frame, frames_of, move, ready, server_ready
from wire.connection import Connection
from wire.errors import (
    BadChecksum,
    BadPayload,
    BadSequence,
    CreditExceeded,
    IllegalReceive,
    IllegalSend,
    MalformedFrame,
    OutOfBounds,
    RemoteError,
    TooLarge,
)
from wire.frames import FrameType
from wire.state import ConnectionState, Role

T = FrameType


class ZlibCodec:
    """Stands in for LZ4: the connection cares only that blocks come back."""

    def compress(self, data):
        return zlib.compress(bytes(data), 1)

    def decompress(self, data, size):
        inflater = zlib.decompressobj()
        try:
            return inflater.decompress(data, size)
        except zlib.error as error:
            raise ValueError(str(error)) from error


def test_compression_after_it_was_agreed_on() -> None:
    client, server = ready(codec=ZlibCodec())
    stream = client.open_stream(T.GENERATE, b"word " * 1000, ends=True, compress=True)
    sent = b"".join(client.data_to_send())
    assert len(sent) < 500
    server.receive_data(sent)
    [event] = frames_of(server.events_received())
    assert bytes(event.payload) == b"word " * 1000 and event.cost > 5000
    room = bytearray(5000)
    server.send(T.DONE, stream, bytes(range(200)), ends=True, compress=True)  # gains nothing, goes plain
    assert bytes(frames_of(move(server, client))[0].payload) == bytes(range(200))
    stream = client.open_stream(T.READ, ends=True)
    client.receive_into(stream, memoryview(room))
    move(client, server)
    server.send(T.DATA, stream, b"x" * 5000, ends=True, compress=True)
    assert frames_of(move(server, client))[0].placed and room == b"x" * 5000


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0\0\0\5", b"\0\0\0\0junk", b"\xff\xff\xff\xffjunk", b"\0\0\0\5junk", b"\0\0\0\7" + zlib.compress(b"four")],
)
def test_compressed_payloads_that_cannot_be_read(payload: bytes) -> None:
    server = server_ready(codec=ZlibCodec())
    server.allow_compression()
    with pytest.raises(BadPayload):
        server.receive_data(frame(T.GENERATE, 1, payload, sequence=1, flags=2))


def test_compression_without_agreement() -> None:
    with pytest.raises(IllegalReceive):
        server_ready(codec=ZlibCodec()).receive_data(frame(T.GENERATE, 1, b"\0\0\0\1x", sequence=1, flags=2))
    with pytest.raises(OutOfBounds):
        Connection(Role.CLIENT).allow_compression()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (frame(T.PING, sequence=2), BadSequence),
        (frame(T.PING, sequence=0), BadSequence),
        (frame(T.PING, payload=b"x", sequence=1)[:-1] + b"y", BadChecksum),
        (frame(T.PING, 1, sequence=1), MalformedFrame),
        (frame(T.GENERATE, 0, sequence=1), MalformedFrame),
        (frame(T.GOODBYE, sequence=1), MalformedFrame),
        (frame(T.PING, payload=bytes(4097), sequence=1), TooLarge),
        (frame(T.CANCEL, 1, bytes(5000), sequence=1, ends=True), TooLarge),
        (frame(T.TOKENS, 1, sequence=1), IllegalReceive),
        (frame(T.DATA, 1, sequence=1), IllegalReceive),
        (frame(T.HELLO, sequence=1), IllegalReceive),
        (frame(T.CREDIT, 0, b"abc", sequence=1), BadPayload),
        (frame(T.CREDIT, 0, bytes(4), sequence=1), CreditExceeded),
        (frame(T.CREDIT, 0, b"\xff" * 4, sequence=1), CreditExceeded),
        (frame(T.ERROR, 1, sequence=1, ends=True), IllegalReceive),
    ],
)
def test_faults_of_the_peer(data: bytes, error: type[RemoteError]) -> None:
    server = server_ready()
    with pytest.raises(error):
        server.receive_data(data)
    assert server.state is ConnectionState.BROKEN
    server.receive_data(data)
    with pytest.raises(IllegalSend):
        server.send(T.PING, 0)
    server.abandon(b"why")
    assert server.data_to_send()[0][0] == T.ERROR and server.state is ConnectionState.CLOSED


def test_what_comes_after_the_end_into_a_buffer_is_not_looked_at() -> None:
    server = server_ready()
    bad = frame(T.PING, sequence=7)
    server.get_buffer()[: len(bad)] = bad
    with pytest.raises(BadSequence):
        server.buffer_updated(len(bad))
    for _ in range(3):
        buffer = server.get_buffer()
        assert len(buffer) > 0
        server.buffer_updated(len(buffer))
    server.receive_end()
    assert server.events_received() == []


@pytest.mark.parametrize("end", ["fail", "answer", "cancel"])
def test_a_room_is_let_go_in_the_middle_of_a_frame_when_its_stream_is_over(end: str) -> None:
    client, server = ready()
    number = client.open_stream(T.READ if end == "cancel" else T.WRITE)
    for event in frames_of(move(client, server)):
        server.release(event)
    sender, receiver = (server, client) if end == "cancel" else (client, server)
    room = bytearray(100)
    receiver.receive_into(number, memoryview(room))
    move(receiver, sender)
    sender.send(T.DATA, number, b"a" * 100)
    sent = b"".join(sender.data_to_send())
    receiver.receive_data(sent[:-60])
    match end:
        case "fail":
            receiver.fail(number)
        case "answer":
            receiver.send(T.ACK, number, ends=True)
        case _:
            receiver.cancel(number)
    receiver.receive_data(sent[-60:])
    assert room == b"a" * 40 + bytes(60)
    assert frames_of(receiver.events_received()) == []
    assert receiver._books.given.held == 0
    room.extend(b"nobody holds it any more")
