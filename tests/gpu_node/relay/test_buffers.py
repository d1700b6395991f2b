"""A session's buffers by number: the account before, during and after, and memory that goes when it may."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gpu_node.errors import DeviceOutOfMemory, NoRoom, RequestError, SessionGone, UnknownHandle
from gpu_node.relay.buffers import BufferSpace, Places
from gpu_node.relay.host_memory import HostMemory, Memory
from gpu_node.vram import Account
from tests.gpu_node.relay.memory_desk import Books
from wire.messages_memory import Alloc, Allocated
from wire.tensors import DType

FLOATS = Alloc(7, DType.FLOAT32, (3, 5))


def view_of(memory: Memory) -> memoryview:
    assert isinstance(memory, HostMemory)
    return memory.view


async def test_a_buffer_is_zeros_counted_and_told() -> None:
    books = Books(Account("cpu", 100))
    space = BufferSpace("session 1", books)
    assert await space.alloc(FLOATS) == Allocated(7, DType.FLOAT32, (3, 5), "cpu", 40)
    assert (books.used_bytes, space.bytes_held, len(space)) == (60, 60, 1)
    with space.get(7).use() as memory:
        assert bytes(view_of(memory)) == bytes(60)
    assert space.free((7, 7, 8)) == 60
    assert (books.used_bytes, space.bytes_held, len(space)) == (0, 0, 0)
    with pytest.raises(UnknownHandle):
        space.get(7)


async def test_asking_again_is_the_same_buffer_and_asking_for_another_is_refused() -> None:
    books = Books()
    space = BufferSpace("session 1", books)
    told = await asyncio.gather(*(space.alloc(FLOATS) for _ in range(3)))
    assert len(set(told)) == 1 and books.used_bytes == 60
    for other in (Alloc(7, DType.INT32, (3, 5)), Alloc(7, DType.FLOAT32, (5, 3))):
        with pytest.raises(RequestError, match=r"buffer 7 is FLOAT32 of shape \(3, 5\)") as caught:
            await space.alloc(other)
        assert caught.value.status == 409
    assert await space.alloc(Alloc(7, DType.FLOAT32, (3, 5), "cpu")) == told[0]
    with pytest.raises(RequestError, match="lies on cpu"):
        await space.alloc(Alloc(7, DType.FLOAT32, (3, 5), "cuda"))
    space.release_all()


async def test_tensors_without_elements_and_without_dimensions() -> None:
    space = BufferSpace("session 1", Books())
    await space.alloc(Alloc(1, DType.FLOAT64, (4, 0)))
    await space.alloc(Alloc(2, DType.FLOAT64))
    assert [space.get(one).size_bytes for one in (1, 2)] == [0, 8]
    assert space.release_all() == 8


async def test_there_are_only_so_many_and_only_so_large() -> None:
    space = BufferSpace("session 1", Books(Account("cpu", 100)), most_buffers=2)
    await space.alloc(Alloc(1, DType.UINT8, (10,)))
    with pytest.raises(NoRoom) as caught:
        await space.alloc(Alloc(2, DType.UINT8, (91,)))
    assert (caught.value.free_bytes, caught.value.needed_bytes) == (90, 91)
    await space.alloc(Alloc(2, DType.UINT8, (90,)))
    with pytest.raises(RequestError, match="2 buffers, which is the most"):
        await space.alloc(Alloc(3, DType.UINT8))
    space.release_all()


async def test_all_sessions_together_have_so_many() -> None:
    books, places = Books(), Places(most=2)
    one, other = (BufferSpace(f"session {number}", books, places=places) for number in (1, 2))
    await one.alloc(FLOATS)
    with pytest.raises(RequestError):
        await one.alloc(Alloc(8, DType.UINT8, (1,), "tpu"))
    await other.alloc(FLOATS)
    for space in (one, other):
        with pytest.raises(NoRoom, match="has 2 buffers"):
            await space.alloc(Alloc(8, DType.UINT8, (0,)))
    with one.get(7).use() as memory, memoryview(view_of(memory)):
        one.free((7,))
        with pytest.raises(NoRoom):
            await other.alloc(Alloc(8, DType.UINT8, (1,)))
    await other.alloc(Alloc(8, DType.UINT8, (1,)))
    assert other.release_all() == 61 and books.used_bytes == 0


async def test_memory_that_the_system_refuses_leaves_no_trace_in_the_account() -> None:
    books = Books(Account("cpu", 1 << 62))
    space = BufferSpace("session 1", books)
    with pytest.raises(DeviceOutOfMemory):
        await space.alloc(Alloc(1, DType.UINT64, (1 << 31, 1 << 27)))
    assert books.used_bytes == 0 and len(space) == 0


async def test_a_freed_buffer_stays_for_whoever_uses_it_and_its_number_is_another_buffers() -> None:
    books = Books()
    space = BufferSpace("session 1", books)
    await space.alloc(FLOATS)
    with space.get(7).use() as memory, space.get(7).use():
        view_of(memory)[:4] = b"kept"
        assert space.free((7,)) == 60
        await space.alloc(Alloc(7, DType.UINT8, (4,)))
        assert bytes(view_of(memory)[:4]) == b"kept"
        assert (books.used_bytes, space.bytes_held) == (64, 64)
    assert books.used_bytes == 4
    assert space.release_all() == 4 and books.used_bytes == 0


async def test_memory_goes_with_the_last_view_that_waits_to_be_sent() -> None:
    books = Books()
    space = BufferSpace("session 1", books)
    await space.alloc(FLOATS)
    with space.get(7).use() as memory:
        waiting = [view_of(memory)[:10], view_of(memory)[10:]]
    assert space.free((7,)) == 60
    assert books.used_bytes == 60
    waiting.pop()
    assert books.used_bytes == 60 and bytes(waiting[0]) == bytes(10)
    waiting.pop()
    assert books.used_bytes == 0


async def test_a_view_that_ends_in_another_thread_is_booked_in_the_loop() -> None:
    books = Books()
    space = BufferSpace("session 1", books)
    await space.alloc(FLOATS)
    with space.get(7).use() as memory:
        waiting = [view_of(memory)[:10]]
    space.free((7,))
    thread = threading.Thread(target=waiting.clear)
    thread.start()
    thread.join()
    assert books.used_bytes == 60
    await asyncio.sleep(0)
    assert books.used_bytes == 0


async def test_after_the_sessions_end_nothing_is_made_any_more() -> None:
    books = Books(Account("cpu", 100))
    space = BufferSpace("session 1", books)
    await books.reserve("session 2", "", 100)
    async with books.room.moving:
        waiting = asyncio.create_task(space.alloc(FLOATS))
        await asyncio.sleep(0)
        assert space.release_all() == 0
        books.release("session 2", "cpu", 100)
    with pytest.raises(SessionGone):
        await waiting
    with pytest.raises(SessionGone):
        await space.alloc(FLOATS)
    assert books.used_bytes == 0


async def test_an_asker_that_leaves_while_it_waits_takes_nothing() -> None:
    books = Books(Account("cpu", 100))
    space = BufferSpace("session 1", books)
    await books.reserve("session 2", "", 100)
    async with books.room.moving:
        waiting = asyncio.create_task(space.alloc(FLOATS))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    books.release("session 2", "cpu", 100)
    assert (await space.alloc(FLOATS)).free_bytes == 40
    space.release_all()


async def test_large_memory_is_zeros_too() -> None:
    memory = HostMemory(5 << 20)
    assert not any(memory.view[:: 1 << 12]) and len(memory.view) == 5 << 20
    gone: list[int] = []
    memory.close(lambda: gone.append(1))
    assert gone


async def test_what_is_borrowed_is_counted_for_a_while() -> None:
    books = Books(Account("cuda", 100), Account("cpu", 50))
    space = BufferSpace("session 1", books)
    async with space.borrowed(40):
        assert dict(books.accounts[1].buffers) == {"session 1": 40} and space.bytes_held == 40
        with pytest.raises(NoRoom):
            async with space.borrowed(11):
                pass
    assert books.used_bytes == 0 and space.bytes_held == 0
    space.release_all()
    with pytest.raises(SessionGone):
        async with space.borrowed(1):
            pass
