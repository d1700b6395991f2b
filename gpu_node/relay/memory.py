"""ALLOC, FREE, WRITE and READ: tensors that a client keeps on this node.

Invariants: only the asking session's buffers are within reach; a write that ends early leaves what came where it
belongs and says how much that is; a buffer that is freed meanwhile is read or written to the end, by whoever began.
Must not know how memory is made or accounted.
"""

from __future__ import annotations

from functools import partial

from gpu_node.errors import RequestError
from gpu_node.relay.buffers import Buffer
from gpu_node.relay.call import RelayCall
from gpu_node.relay.tensor_stream import PART_BYTES, Arrived, receive_piece, send_piece
from transport.codec import crc32
from wire.messages_memory import Alloc, Free, Read
from wire.messages_session import Ack, ErrorCode
from wire.tensors import PIECE_MOST, TensorFlags, TensorHeader, unpack_tensor_header


async def alloc(call: RelayCall) -> None:
    """A buffer of zeros, or the one that is there."""
    allocated = await call.session.buffers.alloc(call.message(Alloc))
    await call.stream.send_message(allocated, ends=True)


async def free(call: RelayCall) -> None:
    """Unknown numbers are no fault: it may be the second time."""
    freed = call.session.buffers.free(call.message(Free).handles)
    await call.stream.send_message(Ack(freed), ends=True)


async def write(call: RelayCall) -> None:
    """One piece into its place. Any number of them may be on their way, of one buffer too."""
    header = unpack_tensor_header(call.request.payload, crc32)
    complete = call.request.ends
    call.stream.release(call.request)
    call.stream.on_cancel = None  # the stream itself tells of it, behind what came before
    buffer = call.session.buffers.get(header.batch)
    _check_fits(header, buffer)
    arrived = Arrived()
    with buffer.use() as memory:
        if not complete:
            checked = bool(header.flags & TensorFlags.CHECKED)
            # A client that says nothing more holds rooms in front of a device, so they are its session's.
            async with call.session.buffers.borrowed(memory.staging_bytes(header.size)):
                # No name for the landing: it holds the memory, and this function lives on until the answer is sent.
                landing = memory.landing
                arrived = await receive_piece(call.stream, landing(header.offset, header.size), header.size, checked)
    await _answer(call, header, arrived)


async def _answer(call: RelayCall, header: TensorHeader, arrived: Arrived) -> None:
    details = (("written_bytes", arrived.size_bytes),)
    if arrived.cancelled:
        await call.stream.send_message(Ack(arrived.size_bytes), ends=True)
    elif arrived.excess:
        told = f"more than the {header.size} bytes that the header says"
        call.stream.fail(ErrorCode.BAD_REQUEST, told, details=details)
    elif arrived.size_bytes < header.size:
        told = f"{arrived.size_bytes} of {header.size} bytes came; go on at offset {header.offset + arrived.size_bytes}"
        call.stream.fail(ErrorCode.CUT_SHORT, told, details=details)
    elif header.flags & TensorFlags.CHECKED and arrived.checksum != header.checksum:
        call.stream.fail(ErrorCode.BAD_CHECKSUM, "the piece's CRC is another: write it again")
    else:
        await call.stream.send_message(Ack(arrived.size_bytes), ends=True)


async def read(call: RelayCall) -> None:
    """A part of a buffer as it is while it is sent."""
    wanted = call.message(Read)
    buffer = call.session.buffers.get(wanted.handle)
    if wanted.offset > buffer.size_bytes:
        raise RequestError(f"buffer {wanted.handle} has {buffer.size_bytes} bytes", field="offset")
    size = wanted.size or buffer.size_bytes - wanted.offset
    if size > buffer.size_bytes - wanted.offset:
        told = f"buffer {wanted.handle} has {buffer.size_bytes - wanted.offset} bytes from {wanted.offset} on"
        raise RequestError(told, field="size")
    if size > PIECE_MOST:
        raise RequestError(f"one READ gives {PIECE_MOST} bytes at most; ask for the tensor in pieces", field="size")
    last = TensorFlags.LAST if wanted.offset + size == buffer.size_bytes else TensorFlags.NONE
    header = TensorHeader(buffer.dtype, buffer.shape, size, wanted.offset, batch=buffer.handle, flags=last)
    with buffer.use() as memory:
        async with call.session.buffers.borrowed(memory.staging_bytes(size)):
            parts = partial(memory.parts, wanted.offset, size, PART_BYTES)
            await send_piece(call.stream, header, parts, wanted.checksum)


def _check_fits(header: TensorHeader, buffer: Buffer) -> None:
    if (header.dtype, header.shape) != (buffer.dtype, buffer.shape):
        told = (
            f"buffer {buffer.handle} is {buffer.dtype.name} of shape {buffer.shape}, "
            f"not {header.dtype.name} of shape {header.shape}"
        )
        raise RequestError(told, field="shape")
    if header.epoch or header.layers != (0, 0):
        raise RequestError("a buffer has no epoch and no layers", field="epoch")
