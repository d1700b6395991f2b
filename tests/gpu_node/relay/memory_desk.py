"""A client and the handlers of remote memory, over a pair of sockets: one session, or several on one account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gpu_node.errors import NodeError
from gpu_node.relay.buffers import BufferSpace, Lender
from gpu_node.relay.call import RelayCall
from gpu_node.relay.errors import failure_of
from gpu_node.relay.memory import alloc, free, read, write
from gpu_node.room import Room
from gpu_node.vram import Account
from tests.transport.pair import Pair, pair
from transport.codec import crc32
from transport.errors import ConnectionLost, TransportError
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.frames import Buffer, FrameType
from wire.messages import Message, encode_message, frame_type
from wire.tensors import TENSOR_HEADER_SIZE, DType, TensorHeader, pack_tensor_header, unpack_tensor_header

T = FrameType
HANDLERS: dict[FrameType, Callable[[RelayCall], Awaitable[None]]] = {
    T.ALLOC: alloc,
    T.FREE: free,
    T.WRITE: write,
    T.READ: read,
}


class Books:
    """An account alone, without models."""

    def __init__(self, *accounts: Account) -> None:
        self.room = Room(accounts or (Account("cpu", 1 << 30),), lambda: (), self._nobody)
        self.reserve, self.release = self.room.reserve, self.room.take_back

    async def _nobody(self, host: Any) -> None:
        raise AssertionError("there is no model")

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self.room.accounts

    @property
    def used_bytes(self) -> int:
        return sum(account.used_bytes for account in self.accounts)


@dataclass
class OneSession:
    number: int
    buffers: BufferSpace
    models: tuple[str, ...] = ()
    state: str = "live"
    cut_since: float | None = None

    @property
    def owner(self) -> str:
        return f"session {self.number}"


@dataclass
class Desk:
    """The client's side."""

    pair: Pair
    session: OneSession
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    lost: list[BaseException] = field(default_factory=list)

    async def open(self, message: Message) -> Stream:
        return await self.pair.client.driver.open(frame_type(message), *encode_message(message), ends=True)

    async def ask(self, message: Message) -> Any:
        return await (await self.open(message)).message()

    async def write(self, header: TensorHeader, data: Buffer, frame_bytes: int = 1 << 20, ends: bool = True) -> Stream:
        stream = await self.pair.client.driver.open(T.WRITE, pack_tensor_header(header, crc32), ends=not len(data))
        view = memoryview(data)
        for start in range(0, len(view), frame_bytes):
            last = start + frame_bytes >= len(view)
            await stream.send(T.DATA, view[start : start + frame_bytes], ends=ends and last)
        return stream

    async def piece_of(self, stream: Stream, room: bytearray) -> TensorHeader:
        """The answer to a READ or RUN, received into `room`."""
        frame = await stream.receive()
        assert len(frame.payload) == TENSOR_HEADER_SIZE
        header = unpack_tensor_header(frame.payload, crc32)
        stream.release(frame)
        room.extend(bytes(header.size - len(room)))
        at, named = 0, False
        while at < header.size:
            frame = None if named else stream.receive_nowait()
            if frame is None:
                if not named:  # what is here by now comes by itself
                    stream.receive_into(memoryview(room)[at : header.size])
                    named = True
                frame = await stream.receive()
            if not frame.placed:
                room[at : at + len(frame.payload)] = frame.payload
            at += len(frame.payload)
            stream.release(frame)
        return header

    async def read(self, message: Message) -> tuple[TensorHeader, bytearray]:
        room = bytearray()
        return await self.piece_of(await self.open(message), room), room

    async def settled(self) -> None:
        """All calls are over."""
        while self.calls:
            await asyncio.wait(self.calls)

    def begin(self, stream: Stream, frame: FrameReceived, handlers: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(stream, frame, handlers))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    async def _answer(self, stream: Stream, frame: FrameReceived, handlers: Any) -> None:
        try:
            await handlers[frame.type](RelayCall(self.session, stream, frame))  # type: ignore[arg-type]
        except NodeError as error:
            failure = failure_of(error)
            stream.fail(failure.code, failure.text, details=failure.details)
        except TransportError as error:
            self.lost.append(error.with_traceback(None))


@asynccontextmanager
async def desk(lender: Lender, number: int = 1, handlers: Any = None, **more: Any) -> AsyncIterator[Desk]:
    async with pair(**more) as both:
        one = Desk(both, OneSession(number, BufferSpace(f"session {number}", lender)))
        both.server.at_request = lambda stream, frame: one.begin(stream, frame, {**HANDLERS, **(handlers or {})})
        yield one
    await one.settled()
    one.session.buffers.release_all()
    assert all(isinstance(error, ConnectionLost) for error in one.lost)


def tensor(handle: int, size: int, offset: int = 0, whole: int = 0, **more: Any) -> TensorHeader:
    """A piece of a tensor of bytes."""
    return TensorHeader(DType.UINT8, (whole or size,), size, offset, batch=handle, **more)
