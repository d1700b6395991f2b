"""Bytes of a tensor from a stream into memory, and from memory into a stream: header first, then DATA frames.

Invariants: on the host no byte is copied on this side, it is received where it stays and sent from there; the loop is
left after each part, so that a large tensor keeps nobody waiting. Must not know sessions, models or sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from gpu_node.relay.host_memory import Landing
from transport.codec import crc32
from transport.errors import Cancelled, StreamEnded
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.frames import Buffer, FrameType
from wire.limits import LARGEST_PAYLOAD
from wire.tensors import TensorFlags, TensorHeader, pack_tensor_header

# What one DATA frame carries, and what the checksum looks at between two turns of the loop.
PART_BYTES = LARGEST_PAYLOAD


@dataclass(slots=True)
class Arrived:
    """How much of a piece came, and what became of the stream."""

    size_bytes: int = 0
    checksum: int = 0
    cancelled: bool = False
    excess: bool = False  # more came than the header says


async def receive_piece(stream: Stream, landing: Landing, size_bytes: int, checked: bool) -> Arrived:
    """Up to the end of the client's half, or to a cancellation. Raises ConnectionLost and BadPayload's kind as the
    stream does; what came until then lies in its place.
    """
    arrived, placed = Arrived(), landing.room is None or not size_bytes
    if placed:
        stream.widen()
    ended = False
    while not ended:
        try:
            frame = stream.receive_nowait()
            if frame is None:
                if not placed and landing.room is not None and arrived.size_bytes < size_bytes:
                    stream.receive_into(landing.room[arrived.size_bytes :])
                    placed = True
                frame = await stream.receive()
        except StreamEnded:
            break
        except Cancelled:
            arrived.cancelled = True
            break
        ended = await _take(arrived, landing, size_bytes, frame, checked)
        stream.release(frame)
        if arrived.excess:
            break
    await landing.settle()
    return arrived


async def _take(arrived: Arrived, landing: Landing, size_bytes: int, frame: FrameReceived, checked: bool) -> bool:
    """True at the end."""
    count = len(frame.payload)
    if arrived.size_bytes + count > size_bytes:
        arrived.excess = True
        return True
    if not frame.placed:
        await landing.put(arrived.size_bytes, frame.payload)
    if checked:
        arrived.checksum = crc32(frame.payload, arrived.checksum)
    arrived.size_bytes += count
    return frame.ends


Parts = Callable[[], AsyncGenerator[memoryview, None]]


async def send_piece(stream: Stream, header: TensorHeader, parts: Parts, checked: bool) -> None:
    """The header's frame and those of the bytes, which `parts` gives; twice when a checksum has to come before them."""
    if checked:
        checksum = 0
        async with aclosing(parts()) as each:
            async for part in each:
                checksum = crc32(part, checksum)
                await asyncio.sleep(0)
        header = replace(header, flags=header.flags | TensorFlags.CHECKED, checksum=checksum)
    await stream.send(FrameType.DATA, pack_tensor_header(header, crc32), ends=not header.size)
    left = header.size
    async with aclosing(parts()) as each:
        async for part in each:
            left -= len(part)
            await stream.send(FrameType.DATA, part, ends=not left)


def parts_of(pieces: Sequence[Buffer], most_bytes: int = PART_BYTES) -> Parts:
    """Of bytes that are here, one behind the other, without a copy."""

    async def parts() -> AsyncGenerator[memoryview, None]:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), most_bytes):
                yield view[start : start + most_bytes]

    return parts
