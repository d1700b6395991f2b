"""The two rooms in front of a device: a card whose copies lag behind, so that a room used too early shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu_node.relay.buffers import BufferSpace
from gpu_node.relay.device_memory import ROOM_BYTES, DeviceMemory, bytes_of, memory_on
from gpu_node.relay.host_memory import HostMemory
from gpu_node.vram import Account
from tests.gpu_node.relay.memory_desk import Books, Desk, desk, tensor
from transport.codec import crc32
from transport.errors import Refused
from wire.messages_memory import Alloc, Free, Read
from wire.messages_session import Ack
from wire.tensors import DType, TensorFlags

SIZE = 2 * ROOM_BYTES + 123_457
DATA = bytes(at * 31 % 251 for at in range(1 << 16)) * (SIZE // (1 << 16) + 1)


class LateCopy:
    def __init__(self, card: LateCard, work: Callable[[], Any]) -> None:
        self._card, self.work = card, work

    def query(self) -> bool:
        return self not in self._card.queue

    def synchronize(self) -> None:
        while self in self._card.queue:
            self._card.queue.popleft().work()


class LateCard:
    """Copies only when somebody waits for it, or when too many are due."""

    def __init__(self, most_due: int = 100) -> None:
        self.queue: deque[LateCopy] = deque()
        self.rooms = self.finished = 0
        self._most_due = most_due

    def zeros(self, size_bytes: int) -> torch.Tensor:
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def room(self, size_bytes: int) -> torch.Tensor:
        self.rooms += 1
        return torch.full((size_bytes,), 255, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> LateCopy:
        done = LateCopy(self, lambda: target.copy_(source))
        self.queue.append(done)
        if len(self.queue) > self._most_due:
            self.queue.popleft().work()
        return done

    def finish(self) -> None:
        while self.queue:
            self.queue.popleft().work()
        self.finished += 1


@pytest.mark.parametrize("most_due", [0, 1, 100])
@pytest.mark.parametrize("frame_bytes", [1 << 20, 300_001, SIZE])
async def test_what_is_put_is_there(most_due: int, frame_bytes: int) -> None:
    card = LateCard(most_due)
    memory = DeviceMemory(SIZE + 20, card)
    landing = memory.landing(10, SIZE)
    assert landing.room is None and card.rooms == 2
    room = bytearray(frame_bytes)  # as a frame's, it is used anew at once
    for start in range(0, SIZE, frame_bytes):
        part = DATA[start : min(start + frame_bytes, SIZE)]
        room[: len(part)] = part
        await landing.put(start, memoryview(room)[: len(part)])
    await landing.settle()
    assert not card.queue and card.rooms == 2
    found = [bytes(part) async for part in memory.parts(0, SIZE + 20, 1 << 20)]
    assert b"".join(found) == bytes(10) + DATA[:SIZE] + bytes(10)
    assert [len(part) for part in found[:-1]] == [1 << 20] * (len(found) - 1)


async def test_one_part_is_on_its_way_while_another_is_sent() -> None:
    card = LateCard()
    memory = DeviceMemory(100, card)
    parts = memory.parts(0, 100, 40)
    first = await anext(parts)
    assert len(card.queue) == 1 and card.rooms == 2
    bytes_of(memory._bytes)[:40] = b"x" * 40
    assert bytes(first) == bytes(40), "a part is a room of its own"
    await parts.aclose()
    gone: list[int] = []
    memory.close(lambda: gone.append(1))
    assert gone and card.finished == 1 and not card.queue


async def whole(one: Desk) -> bytes:
    return bytes((await one.read(Read(1, checksum=True)))[1])


async def test_clients_see_no_difference() -> None:
    books = Books(Account("cuda", 1 << 30), Account("cpu", 1 << 30))
    async with desk(books) as one:
        kinds: list[str] = []

        def make(device: str, size: int) -> DeviceMemory:
            kinds.append(device)
            return DeviceMemory(size, LateCard(1))

        one.session.buffers = BufferSpace("session 1", books, make)
        told = await one.ask(Alloc(1, DType.UINT8, (SIZE,), "cuda:0"))
        assert (told.device, told.free_bytes, kinds) == ("cuda", (1 << 30) - SIZE, ["cuda"])
        checked = tensor(1, SIZE, flags=TensorFlags.CHECKED, checksum=crc32(DATA[:SIZE], 0))
        assert await (await one.write(checked, DATA[:SIZE])).message() == Ack(SIZE)
        assert await whole(one) == DATA[:SIZE]
        stream = await one.write(tensor(1, SIZE), DATA[:ROOM_BYTES], ends=False)
        assert await one.ask(Free((1,))) == Ack(SIZE)
        staged = {account.device: account.used_bytes for account in books.accounts}
        assert staged == {"cuda": SIZE, "cpu": 2 * ROOM_BYTES}, "the rooms are the session's while it writes"
        stream.cancel()
        await one.settled()
        assert books.used_bytes == 0


async def test_who_has_no_room_on_the_host_moves_nothing_to_a_device() -> None:
    """Many writes that go no further would fill the host with rooms otherwise."""
    books = Books(Account("cuda", 1 << 30), Account("cpu", 2 * ROOM_BYTES))
    async with desk(books) as one:
        one.session.buffers = BufferSpace("session 1", books, lambda _, size: DeviceMemory(size, LateCard()))
        await one.ask(Alloc(1, DType.UINT8, (SIZE,)))
        silent = await one.write(tensor(1, SIZE), DATA[:1], ends=False)
        await one.ask(Alloc(2, DType.UINT8, (1,), "cuda"))
        with pytest.raises(Refused, match="NO_ROOM"):
            await one.read(Read(1))
        silent.cancel()
        await one.settled()
        assert await whole(one) == DATA[:1] + bytes(SIZE - 1)
        one.session.buffers.release_all()
    assert books.used_bytes == 0


def test_the_host_has_memory_of_its_own_kind() -> None:
    memory = memory_on("cpu", 10)
    assert isinstance(memory, HostMemory) and len(memory.view) == 10
    memory.close(lambda: None)
