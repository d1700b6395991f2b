"""Memory of a buffer on a GPU: bytes of torch, and two rooms of pinned memory in front of it.

A copy to or from the device runs beside the network: while one room is filled or sent, the other one is on its way.
Invariants: all work on one buffer is on a stream of its own, in order; a pinned room is used anew only when the device
is done with it. torch is imported when the first such buffer is made, and nowhere else in the relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from gpu_node.errors import DeviceOutOfMemory
from gpu_node.relay.host_memory import HostMemory, Landing, Memory
from wire.frames import Buffer

# Two of them are what a transfer to the device pins; large enough that starting a copy costs nothing beside it.
ROOM_BYTES = 2 << 20


def memory_on(device: str, size_bytes: int) -> Memory:
    """Zeros on a device of the account. Raises `DeviceOutOfMemory`."""
    return CudaMemory(size_bytes) if device.startswith("cuda") else HostMemory(size_bytes)


class CudaMemory:
    def __init__(self, size_bytes: int) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(self._stream):
                self._bytes = torch.zeros(size_bytes, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(f"the GPU has no {size_bytes} bytes to give") from error

    def landing(self, offset: int, size_bytes: int) -> Landing:
        return _CudaLanding(self._bytes[offset : offset + size_bytes], self._stream)

    async def parts(self, offset: int, size_bytes: int, most_bytes: int) -> AsyncGenerator[memoryview, None]:
        """Each in pinned memory of its own, which torch takes back for the next ones when it has been sent."""
        starts = range(offset, offset + size_bytes, most_bytes)
        under_way = None
        for start in starts:
            begun = self._fetched(start, min(most_bytes, offset + size_bytes - start))
            if under_way is not None:
                yield await _arrived(*under_way)
            under_way = begun
        if under_way is not None:
            yield await _arrived(*under_way)

    def close(self, given_back: Callable[[], None]) -> None:
        import torch

        self._stream.synchronize()
        self._bytes = torch.empty(0)
        torch.cuda.empty_cache()
        given_back()

    def _fetched(self, start: int, size_bytes: int) -> tuple[Any, Any]:
        import torch

        with torch.cuda.stream(self._stream):
            room = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            room.copy_(self._bytes[start : start + size_bytes], non_blocking=True)
            return room, self._stream.record_event()


class _CudaLanding:
    room = None

    def __init__(self, target: Any, stream: Any) -> None:
        import torch

        self._target, self._stream = target, stream
        size = min(ROOM_BYTES, max(target.numel(), 1))
        self._rooms = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._busy: list[Any] = [None, None]  # events: the room is on its way to the device
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
        import torch

        if not self._filled:
            return
        with torch.cuda.stream(self._stream):
            target = self._target[self._at : self._at + self._filled]
            target.copy_(self._rooms[0][: self._filled], non_blocking=True)
            self._busy[0] = self._stream.record_event()
        self._at, self._filled = self._at + self._filled, 0
        self._rooms.reverse()
        self._busy.reverse()


def bytes_of(room: Any) -> memoryview:
    """A flat tensor of bytes on the host; the view keeps it."""
    array: Any = room.numpy()
    return memoryview(array)


async def _arrived(room: Any, event: Any) -> memoryview:
    await _done(event)
    return bytes_of(room)


async def _done(event: Any) -> None:
    """Most are when they are asked: a room crosses in less time than the network needs for it."""
    if event is not None and not event.query():
        await asyncio.to_thread(event.synchronize)
