"""ALLOC, FREE, WRITE and READ from the other end of a socket: bytes, faults, cuts, and what memory they take."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

from gpu_node.relay.host_memory import HostMemory
from tests.gpu_node.relay.memory_desk import Books, Desk, T, desk, tensor
from tests.gpu_node.serving import until_true
from transport.codec import crc32
from transport.errors import ConnectionLost, Refused
from transport.streams import Stream
from wire.messages_memory import Alloc, Allocated, Free, Read
from wire.messages_session import Ack, ErrorCode
from wire.tensors import DType, TensorFlags, TensorHeader, pieces

CHECKED, LAST = TensorFlags.CHECKED, TensorFlags.LAST
SIZE = 3_000_001


def sample(size: int = SIZE) -> bytes:
    return bytes(at * 31 % 251 for at in range(1 << 16)) * (size // (1 << 16) + 1)


DATA = memoryview(sample())[:SIZE]


@pytest.fixture
def books() -> Books:
    return Books()


async def bytes_of(one: Desk, handle: int = 1, **more: Any) -> bytes:
    return bytes((await one.read(Read(handle, **more)))[1])


async def until_written(one: Desk, size: int) -> None:
    """The first bytes are in their place, and whoever receives them has heard of it."""
    with one.session.buffers.get(1).use() as memory:
        assert isinstance(memory, HostMemory)
        await until_true(lambda: memory.view[:size] == DATA[:size])
    for _ in range(10):
        await asyncio.sleep(0)


async def refusal(stream: Stream) -> Refused:
    with pytest.raises(Refused) as caught:
        await stream.message()
    return caught.value


@pytest.mark.parametrize("frame_bytes", [1 << 20, 65_536, 50_000, 999_999, SIZE])
async def test_what_is_written_is_read(books: Books, frame_bytes: int) -> None:
    async with desk(books) as one:
        assert await one.ask(Alloc(1, DType.UINT8, (SIZE,))) == Allocated(
            1, DType.UINT8, (SIZE,), "cpu", (1 << 30) - SIZE
        )
        frame_bytes = min(frame_bytes, 1 << 20)
        stream = await one.write(tensor(1, SIZE, flags=CHECKED, checksum=crc32(DATA, 0)), DATA, frame_bytes)
        assert await stream.message() == Ack(SIZE)
        header, found = await one.read(Read(1, checksum=True))
        assert found == DATA
        assert header == tensor(1, SIZE, flags=CHECKED | LAST, checksum=crc32(DATA, 0))
        assert await one.ask(Free((1,))) == Ack(SIZE)
        assert await one.ask(Free((1,))) == Ack(0)
        assert books.used_bytes == 0


async def test_parts_are_written_and_read_by_offset(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.INT16, (5, 10)))
        header = TensorHeader(DType.INT16, (5, 10), 6, 94, batch=1)
        assert await (await one.write(header, b"behind")).message() == Ack(6)
        header, found = await one.read(Read(1, 90, 8))
        assert (bytes(found), header.offset, header.last) == (b"\0\0\0\0behi", 90, False)
        header, found = await one.read(Read(1, 100))
        assert (found, header.size, header.last) == (b"", 0, True)
        for wrong, field in ((Read(1, 101), "offset"), (Read(1, 99, 2), "size")):
            refused = await refusal(await one.open(wrong))
            assert (refused.code, refused.details["field"]) == (ErrorCode.BAD_REQUEST, field)


async def test_pieces_on_several_streams_may_come_in_any_order(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (SIZE,)))
        all_pieces = list(pieces(tensor(1, SIZE, flags=CHECKED), DATA, crc32, 700_000))
        streams = [await one.pair.client.driver.open(T.WRITE, header) for header, _ in reversed(all_pieces)]
        sending = [
            stream.send(T.DATA, piece[start : start + 100_000], ends=start + 100_000 >= len(piece))
            for start in range(0, 700_000, 100_000)
            for stream, (_, piece) in zip(streams, reversed(all_pieces), strict=True)
            if start < len(piece)
        ]
        for one_frame in sending:
            await one_frame
        told = [await stream.message() for stream in streams]
        assert told == [Ack(len(piece)) for _, piece in reversed(all_pieces)]
        assert await bytes_of(one) == DATA


async def test_a_tensor_without_elements(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.FLOAT32, (0, 4)))
        header = TensorHeader(DType.FLOAT32, (0, 4), 0, batch=1)
        assert await (await one.write(header, b"")).message() == Ack(0)
        header, found = await one.read(Read(1, checksum=True))
        assert (found, header.shape, header.flags) == (b"", (0, 4), CHECKED | LAST)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (tensor(2, 10), ErrorCode.UNKNOWN_HANDLE),
        (TensorHeader(DType.INT8, (10,), 10, batch=1), ErrorCode.BAD_REQUEST),
        (tensor(1, 10, whole=11), ErrorCode.BAD_REQUEST),
        (tensor(1, 10, epoch=1), ErrorCode.BAD_REQUEST),
        (tensor(1, 10, flags=CHECKED, checksum=1), ErrorCode.BAD_CHECKSUM),
        (tensor(1, 9, whole=10), ErrorCode.BAD_REQUEST),
    ],
)
async def test_writes_that_do_not_fit_are_refused(books: Books, header: TensorHeader, code: ErrorCode) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (10,)))
        assert (await refusal(await one.write(header, b"0123456789"))).code is code
        assert await (await one.write(tensor(1, 10), b"9876543210")).message() == Ack(10)
        assert await bytes_of(one) == b"9876543210", "the connection lives on"


async def test_a_write_that_ends_early_says_where_to_go_on(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (SIZE,)))
        refused = await refusal(await one.write(tensor(1, SIZE), DATA[:1_500_000]))
        assert (refused.code, refused.details["written_bytes"]) == (ErrorCode.CUT_SHORT, 1_500_000)
        stream = await one.write(tensor(1, SIZE - 1_500_000, 1_500_000, SIZE), DATA[1_500_000:2_000_000], ends=False)
        await until_written(one, 2_000_000)
        stream.cancel()
        assert await stream.message() == Ack(500_000)
        assert await bytes_of(one, size=2_000_001) == bytes(DATA[:2_000_000]) + b"\0"


async def test_a_cut_connection_leaves_the_buffer_with_what_came(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (SIZE,)))
        await one.write(tensor(1, SIZE), DATA[:1_000_000], ends=False)
        await until_written(one, 1_000_000)
        one.pair.client.driver.close()
        await one.settled()
        assert [type(error) for error in one.lost] == [ConnectionLost]
        kept = one.session.buffers
        async with desk(books) as again:
            again.session.buffers = kept
            assert await bytes_of(again, size=1_000_000) == DATA[:1_000_000]
            assert await again.ask(Alloc(1, DType.UINT8, (SIZE,)))
            gc.disable()
            try:
                assert kept.free((1,)) == SIZE
                assert books.used_bytes == 0, "nothing of the old connection holds it"
            finally:
                gc.enable()


async def test_a_buffer_freed_while_it_is_written_goes_when_the_write_ends(books: Books) -> None:
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (SIZE,)))
        stream = await one.write(tensor(1, SIZE), DATA[:1_000_000], ends=False)
        assert await one.ask(Free((1,))) == Ack(SIZE)
        assert books.used_bytes == SIZE
        for start in range(1_000_000, SIZE, 500_000):
            await stream.send(T.DATA, DATA[start : start + 500_000], ends=start + 500_000 >= SIZE)
        assert await stream.message() == Ack(SIZE)
        await one.settled()
        assert books.used_bytes == 0
        assert (await refusal(await one.open(Read(1)))).code is ErrorCode.UNKNOWN_HANDLE


async def test_a_buffer_freed_while_it_is_read_is_read_to_its_end(books: Books) -> None:
    async with desk(books) as one:
        size = 12 << 20
        await one.ask(Alloc(1, DType.UINT8, (size,)))
        stream = await one.open(Read(1))
        header = await stream.receive()
        stream.release(header)
        assert await one.ask(Free((1,))) == Ack(size)
        assert books.used_bytes == size, "a reader that takes its time"
        at = 0
        while at < size:
            frame = await stream.receive()
            at += len(frame.payload)
            stream.release(frame)
        await one.settled()
        await one.pair.server.driver.drain()
        assert books.used_bytes == 0


async def test_buffers_of_another_session_are_out_of_reach(books: Books) -> None:
    async with desk(books) as one, desk(books, number=2) as other:
        await one.ask(Alloc(1, DType.UINT8, (6,)))
        await (await one.write(tensor(1, 6), b"secret")).message()
        assert (await refusal(await other.open(Read(1)))).code is ErrorCode.UNKNOWN_HANDLE
        assert (await refusal(await other.write(tensor(1, 6), b"public"))).code is ErrorCode.UNKNOWN_HANDLE
        assert await other.ask(Free((1,))) == Ack(0)
        await other.ask(Alloc(1, DType.UINT8, (6,)))
        assert await bytes_of(other) == bytes(6)
        assert await bytes_of(one) == b"secret"
        assert await one.ask(Free((1,))) == Ack(6)
        await one.ask(Alloc(1, DType.UINT8, (6,)))
        assert await bytes_of(one) == bytes(6), "zeros, not what was there before"


async def test_no_room_tells_what_is_free(books: Books) -> None:
    async with desk(books) as one:
        refused = await refusal(await one.open(Alloc(1, DType.UINT8, ((1 << 30) + 1,))))
        assert refused.code is ErrorCode.NO_ROOM
        assert refused.details == {"free_bytes": 1 << 30, "needed_bytes": (1 << 30) + 1}


async def test_a_large_tensor_goes_in_and_out_without_a_copy_of_it(books: Books) -> None:
    size = 64 << 20
    data = bytearray(sample(size))[:size]
    back = bytearray(size)
    async with desk(books) as one:
        await one.ask(Alloc(1, DType.UINT8, (size,)))
        gc.collect()
        tracemalloc.start()
        try:
            stream = await one.write(tensor(1, size, flags=CHECKED, checksum=crc32(data, 0)), data)
            assert await stream.message() == Ack(size)
            written = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            await one.piece_of(await one.open(Read(1, checksum=True)), back)
            read = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert back == data
        # Both sides of the connection are in this process; a frame that came before its room was known is one of them.
        assert max(written, read) < 4 << 20
