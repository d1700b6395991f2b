"""Two connections back to back in memory, and frames made by hand."""

from __future__ import annotations

import zlib

from wire.connection import Connection, Event, FrameReceived
from wire.frames import Flags, FrameType, Header, pack_header
from wire.limits import Limits
from wire.state import Role


def frame(
    kind: FrameType, stream_id: int = 0, payload: bytes = b"", *, sequence: int = 0, ends: bool = False, flags: int = 0
) -> bytes:
    bits = Flags(flags | (Flags.END if ends else 0))
    header = Header(kind, bits, stream_id, len(payload), sequence)
    return pack_header(header, (payload,), zlib.crc32) + payload


def move(sender: Connection, receiver: Connection) -> list[Event]:
    """Everything that may go now, and what arrives."""
    while data := b"".join(sender.data_to_send()):
        receiver.receive_data(data)
    return receiver.events_received()


def settle(client: Connection, server: Connection) -> None:
    while client.wants_to_send or server.wants_to_send:
        move(client, server)
        move(server, client)


def frames_of(events: list[Event]) -> list[FrameReceived]:
    return [event for event in events if isinstance(event, FrameReceived)]


def ready(
    limits: Limits | None = None, codec=None, client_limits: Limits | None = None
) -> tuple[Connection, Connection]:
    client = Connection(Role.CLIENT, limits=client_limits or limits, codec=codec)
    server = Connection(Role.SERVER, limits=limits, codec=codec)
    client.send(FrameType.HELLO, 0, b"hello")
    move(client, server)
    server.send(FrameType.WELCOME, 0, b"welcome", ends=True)
    settle(client, server)
    if codec:
        client.allow_compression()
        server.allow_compression()
    return client, server


def server_ready(**named) -> Connection:
    server = Connection(Role.SERVER, **named)
    server.receive_data(frame(FrameType.HELLO, payload=b"hello"))
    server.send(FrameType.WELCOME, 0, ends=True)
    server.data_to_send()
    server.events_received()
    return server
