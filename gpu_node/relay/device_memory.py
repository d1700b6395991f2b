"""Memory of a buffer on a GPU: bytes of torch, and two rooms of pinned memory in front of it.

A copy to or from the device runs beside the network: while one room is filled or sent, the other one is on its way.
Invariants: all work on one buffer is on a stream of its own, in order; a pinned room is used anew only when the device
is done with it. torch is imported when the first such buffer is made, and nowhere else in the relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from gpu_node.errors import DeviceOutOfMemory
from gpu_node.relay.host_memory import HostMemory, Landing, Memory
from wire.frames import Buffer

# Two of them are what a transfer to the device pins; large enough that starting a copy costs nothing beside it.
ROOM_BYTES = 2 << 20


class Done(Protocol):
    """The end of a copy."""

    def query(self) -> bool: ...

    def synchronize(self) -> None:
        """May block the thread."""
        ...


class Card(Protocol):
    """What is asked of a device: flat tensors of bytes, and copies that run by themselves, one after the other."""

    def zeros(self, size_bytes: int) -> Any:
        """On the device. Raises `DeviceOutOfMemory`."""
        ...

    def room(self, size_bytes: int) -> Any:
        """On the host, where the device can reach it."""
        ...

    def copy(self, target: Any, source: Any) -> Done: ...

    def finish(self) -> None:
        """Returns when nothing is under way; what is not used any more goes back to the system."""
        ...


def memory_on(device: str, size_bytes: int) -> Memory:
    """Zeros on a device of the account. Raises `DeviceOutOfMemory`."""
    return DeviceMemory(size_bytes, CudaCard()) if device.startswith("cuda") else HostMemory(size_bytes)


class CudaCard:
    """A stream of torch's current GPU."""

    def __init__(self) -> None:
        import torch

        self._torch, self._stream = torch, torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def zeros(self, size_bytes: int) -> Any:
        torch = self._torch
        try:
            with torch.cuda.stream(self._stream):
                return torch.zeros(size_bytes, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(f"the GPU has no {size_bytes} bytes to give") from error

    def room(self, size_bytes: int) -> Any:
        """torch keeps such rooms and gives them anew when nobody holds them and no copy needs them."""
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=True)

    def copy(self, target: Any, source: Any) -> Done:
        with self._torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event: Done = self._stream.record_event()
        return event

    def finish(self) -> None:
        self._stream.synchronize()
        self._torch.cuda.empty_cache()


class DeviceMemory:
    def __init__(self, size_bytes: int, card: Card) -> None:
        self._card = card
        self._bytes = card.zeros(size_bytes)

    def staging_bytes(self, size_bytes: int) -> int:
        return 2 * min(ROOM_BYTES, size_bytes)

    def landing(self, offset: int, size_bytes: int) -> Landing:
        return _DeviceLanding(self._bytes[offset : offset + size_bytes], self._card)

    async def parts(self, offset: int, size_bytes: int, most_bytes: int) -> AsyncGenerator[memoryview, None]:
        """Each in a room of its own, which lives until it has been sent; the next one is always on its way."""
        under_way = None
        for start in range(offset, offset + size_bytes, most_bytes):
            source = self._bytes[start : min(start + most_bytes, offset + size_bytes)]
            room = self._card.room(source.numel())
            begun = (room, self._card.copy(room, source))
            if under_way is not None:
                yield await _arrived(*under_way)
            under_way = begun
        if under_way is not None:
            yield await _arrived(*under_way)

    def close(self, given_back: Callable[[], None]) -> None:
        self._bytes = self._bytes[:0].clone()
        self._card.finish()
        given_back()


class _DeviceLanding:
    room = None

    def __init__(self, target: Any, card: Card) -> None:
        self._target, self._card = target, card
        size = min(ROOM_BYTES, max(target.numel(), 1))
        self._rooms = [card.room(size), card.room(size)]
        self._busy: list[Done | None] = [None, None]  # the room is on its way to the device
        self._at = 0  # in the target, where the room that is being filled belongs
        self._filled = 0

    async def put(self, at: int, data: Buffer) -> None:
        assert at == self._at + self._filled, "bytes come in order"
        view = memoryview(data)
        while view:
            room = self._rooms[0]
            await _done(self._busy[0])
            part = view[: room.numel() - self._filled]
            bytes_of(room)[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == room.numel():
                self._send()

    async def settle(self) -> None:
        self._send()
        for event in self._busy:
            await _done(event)

    def _send(self) -> None:
        """The room that is full goes, the other one is next."""
        if not self._filled:
            return
        target = self._target[self._at : self._at + self._filled]
        self._busy[0] = self._card.copy(target, self._rooms[0][: self._filled])
        self._at, self._filled = self._at + self._filled, 0
        self._rooms.reverse()
        self._busy.reverse()


def bytes_of(room: Any) -> memoryview:
    """A flat tensor of bytes on the host; the view keeps it."""
    array: Any = room.numpy()
    return memoryview(array)


async def _arrived(room: Any, done: Done) -> memoryview:
    await _done(done)
    return bytes_of(room)


async def _done(event: Done | None) -> None:
    """Most are when they are asked: a room crosses in less time than the network needs for it."""
    if event is not None and not event.query():
        await asyncio.to_thread(event.synchronize)
