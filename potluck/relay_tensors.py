"""Tensors on their way to a node's memory and back.

Invariants: nothing is copied on this side: pieces are views of the caller's memory, and what is read lands in the
result; two pieces are on their way at once, so the line is busy while one is acknowledged; a piece that a cut line
swallowed goes again, as long as the node still has the session. Knows no caller's arrays (`relay_arrays.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from transport.codec import crc32
from transport.errors import ConnectionLost, ProtocolBroken, Refused
from transport.link import Link
from transport.session import RelaySession
from transport.streams import Stream
from wire.errors import BadPayload
from wire.frames import FrameType
from wire.limits import LARGEST_PAYLOAD
from wire.messages import Message, decode_message
from wire.messages_memory import Allocated, Read, Run
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Progress
from wire.tensors import (
    TENSOR_HEADER_SIZE,
    USUAL_PIECE,
    TensorFlags,
    TensorHeader,
    check_piece,
    pieces,
    unpack_tensor_header,
)

from .relay_ending import ended

__all__ = ["read_into", "run", "write"]

ON_THE_WAY = 2  # while one piece is being acknowledged the next one keeps the line busy
FRAME_BYTES = LARGEST_PAYLOAD
# A result of this many bytes is no result of any model's that fits a node.
RESULT_MOST = 1 << 36

Piece = TypeVar("Piece")
Told = Callable[[int], None]
"""Called with the bytes that one more piece has brought to its end."""


async def write(session: RelaySession, tensor: TensorHeader, data: memoryview, on_bytes: Told | None = None) -> None:
    """`data` into the buffer `tensor.batch` from `tensor.offset` on; its CHECKED flag asks for the pieces' CRC.

    Raises Refused (UNKNOWN_HANDLE when the session with the buffer is gone) and what `RelaySession.link` raises.
    """
    if not data.nbytes:
        return
    waiting = pieces(tensor, data, crc32, USUAL_PIECE)

    async def send(piece: tuple[bytes, memoryview], link: Link) -> int:
        header, view = piece
        stream = await link.open_raw(FrameType.WRITE, header, ends=False)
        with ended(stream):
            for start in range(0, view.nbytes, FRAME_BYTES):
                part = view[start : start + FRAME_BYTES]
                await stream.send(FrameType.DATA, part, ends=start + part.nbytes == view.nbytes)
            answer = await stream.message()
            if not isinstance(answer, Ack) or answer.amount != view.nbytes:
                raise BadPayload(f"{view.nbytes} bytes were written, the node has {answer}")
        return view.nbytes

    await _all(session, waiting, send, on_bytes)


async def read_into(
    session: RelaySession, tensor: TensorHeader, room: memoryview, on_bytes: Told | None = None
) -> None:
    """The bytes of the buffer `tensor.batch` from `tensor.offset` on, until `room` is full. Raises as `write`."""
    if not room.nbytes:
        return
    checked = bool(tensor.flags & TensorFlags.CHECKED)
    parts = ((start, room[start : start + USUAL_PIECE]) for start in range(0, room.nbytes, USUAL_PIECE))

    async def receive(piece: tuple[int, memoryview], link: Link) -> int:
        start, view = piece
        wanted = replace(tensor, offset=tensor.offset + start, size=view.nbytes)
        stream = await link.open(Read(tensor.batch, wanted.offset, view.nbytes, checked))
        with ended(stream):
            head = bytearray(TENSOR_HEADER_SIZE)
            stream.receive_into(memoryview(head))
            stream.receive_into(view)
            await _placed(stream, memoryview(head), view)
            header = unpack_tensor_header(head, crc32)
            _check(header, wanted)
            check_piece(header, view, crc32)
        return view.nbytes

    await _all(session, iter(parts), receive, on_bytes)


async def run(
    session: RelaySession, request: Run, on_progress: Callable[[Progress], None] | None = None
) -> tuple[TensorHeader, bytearray] | Allocated:
    """A model's output, or where it was kept. Asked again after a cut: a run changes nothing on the node."""
    patience = None
    while True:
        link = await session.link()
        patience = patience or session.patience()
        try:
            result = await _run_on(link, request, on_progress)
        except ProtocolBroken:
            raise
        except ConnectionLost:
            if session.closed or patience.is_over(session.now()):
                raise
        else:
            session.went_on()
            return result


async def _run_on(
    link: Link, request: Run, on_progress: Callable[[Progress], None] | None
) -> tuple[TensorHeader, bytearray] | Allocated:
    stream = await link.open(request)
    with ended(stream):
        while True:
            frame = await stream.receive()
            if frame.type is FrameType.DATA:
                header = unpack_tensor_header(frame.payload, crc32)
                stream.release(frame)
                return header, await _rest(stream, header)
            message: Message = decode_message(frame.type, frame.payload)
            stream.release(frame)
            if isinstance(message, Allocated):
                return message
            if isinstance(message, Progress) and on_progress is not None:
                on_progress(message)


async def _rest(stream: Stream, header: TensorHeader) -> bytearray:
    """The bytes behind a header whose size nobody knew before."""
    if header.offset or header.size != header.tensor_size or header.size > RESULT_MOST:
        raise BadPayload(f"a result in parts, or of {header.tensor_size} bytes")
    room = bytearray(header.size)
    view = memoryview(room)
    while view.nbytes and (frame := stream.receive_nowait()) is not None:  # here before there was a place for it
        if frame.payload.nbytes > view.nbytes:
            raise BadPayload("more bytes than the header said")
        view[: frame.payload.nbytes] = frame.payload
        view = view[frame.payload.nbytes :]
        stream.release(frame)
    if view.nbytes:
        stream.receive_into(view)
        await _placed(stream, view)
    check_piece(header, room, crc32)
    return room


async def _placed(stream: Stream, *rooms: memoryview) -> None:
    """Until all rooms are full. Frames that came before the rooms were named are copied into them."""
    for room in rooms:
        while room.nbytes:
            frame = await stream.receive()
            size = frame.payload.nbytes
            if frame.type is not FrameType.DATA or size > room.nbytes:
                raise BadPayload(f"{frame.type.name} of {size} bytes where {room.nbytes} of DATA are due")
            if not frame.placed:
                room[:size] = frame.payload
            stream.release(frame)
            room = room[size:]


def _check(header: TensorHeader, wanted: TensorHeader) -> None:
    same = (header.dtype, header.shape, header.offset, header.size)
    if same != (wanted.dtype, wanted.shape, wanted.offset, wanted.size):
        raise BadPayload(f"the node sent {same} where {wanted} was asked for")


@dataclass(slots=True)
class _Journey:
    """The session that the buffer is in: a connection of another one has no such buffer."""

    key: bytes | None = None

    async def link(self, session: RelaySession) -> Link:
        link = await session.link()
        self.key = self.key or link.welcome.session_key
        if link.welcome.session_key != self.key:
            raise Refused(ErrorCode.UNKNOWN_HANDLE, "the node has freed the buffer while there was no connection")
        return link


async def _all(
    session: RelaySession, waiting: Iterator[Piece], carry: Callable[[Piece, Link], Awaitable[int]], told: Told | None
) -> None:
    """Carries every piece, `ON_THE_WAY` at once; the first failure ends the others."""
    journey = _Journey()
    begun = list(islice(waiting, ON_THE_WAY))
    rest = chain(begun, waiting)

    async def worker() -> None:
        for piece in rest:  # one iterator for all: each takes the next
            done = await _carried(session, journey, partial(carry, piece))
            if told is not None:
                told(done)

    if len(begun) == 1:
        return await worker()  # small tensors are one piece, and tasks would cost as much as the way there
    workers = [asyncio.ensure_future(worker()) for _ in range(ON_THE_WAY)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.wait(workers)


async def _carried(session: RelaySession, journey: _Journey, carry: Callable[[Link], Awaitable[int]]) -> int:
    patience = None
    while True:
        link = await journey.link(session)
        patience = patience or session.patience()
        try:
            done = await carry(link)
        except ProtocolBroken:
            raise
        except ConnectionLost:
            if session.closed or patience.is_over(session.now()):
                raise
        else:
            session.went_on()
            return done
