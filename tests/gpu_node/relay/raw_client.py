"""A client at its lowest: a socket and the protocol's own machine, so that a test can stop at any byte."""

from __future__ import annotations

import asyncio
import socket
import struct

from transport.codec import crc32
from wire.connection import Connection, FrameReceived
from wire.frames import FrameType
from wire.handshake import ClientHandshake, ClientTerms
from wire.messages import Message, decode_message, encode_message, frame_type
from wire.state import Role


class RawClient:
    def __init__(self, connected: socket.socket, token: str | None = None, key: bytes = b"") -> None:
        self.socket = connected
        self.wire = Connection(Role.CLIENT, checksum=crc32)
        self.handshake = ClientHandshake(ClientTerms("raw", token, session_key=key), bytes(32))
        self.frames: list[FrameReceived] = []

    @classmethod
    async def open(cls, port: int, token: str | None = None, key: bytes = b"") -> RawClient:
        connected = socket.socket()
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port))
        return cls(connected, token, key)

    def pending(self) -> bytes:
        return b"".join(map(bytes, self.wire.data_to_send()))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def flush(self) -> None:
        await self.send(self.pending())

    def hello(self) -> bytes:
        self.wire.send(FrameType.HELLO, 0, self.handshake.begin())
        return self.pending()

    def request(self, message: Message, ends: bool = True) -> bytes:
        self.wire.open_stream(frame_type(message), *encode_message(message), ends=ends)
        return self.pending()

    async def next(self) -> FrameReceived | None:
        """None when the node has closed."""
        while not self.frames:
            try:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self.wire.receive_data(data)
            self.frames += [event for event in self.wire.events_received() if isinstance(event, FrameReceived)]
        return self.frames.pop(0)

    async def message(self) -> Message:
        frame = await self.next()
        assert frame is not None, "the node has closed"
        message = decode_message(frame.type, frame.payload)
        self.wire.release(frame)
        return message

    async def greet(self) -> None:
        await self.send(self.hello())
        while True:
            frame = await self.next()
            assert frame is not None and frame.type is FrameType.WELCOME
            answer = self.handshake.receive(frame.payload, frame.ends)
            if answer is None:
                return
            self.wire.send(FrameType.HELLO, 0, answer)
            await self.flush()

    async def closed_by_node(self) -> None:
        while await self.next() is not None:
            pass

    def kill(self, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
