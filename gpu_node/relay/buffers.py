"""The tensors that one session keeps on this node, by the numbers that its client chose.

Invariants: a number names one buffer of this session and of no other; every byte of it stands in the account from
before it is there until after it is gone; a buffer that is freed while somebody reads or writes it has no name any more
and goes with the last of them. Must not know streams, nor how memory is made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol

from gpu_node.errors import NoRoom, RequestError, SessionGone, UnknownHandle
from gpu_node.relay.device_memory import memory_on
from gpu_node.relay.host_memory import Memory
from gpu_node.vram import Account
from wire.messages_memory import HANDLES, Alloc, Allocated

# The account of the host's own memory.
HOST = "cpu"

# Of all sessions together. A large one is a mapping of the process, of which Linux gives 65530, and each takes a
# kilobyte or two that no account knows.
MOST_TOGETHER = 1 << 15

# From a device of the account and a size to memory of zeros; raises `DeviceOutOfMemory`.
MakeMemory = Callable[[str, int], Memory]


class Lender(Protocol):
    """The account, as `Residents` keeps it."""

    @property
    def accounts(self) -> tuple[Account, ...]: ...

    async def reserve(self, owner: str, device: str, size_bytes: int) -> str: ...

    def release(self, owner: str, device: str, size_bytes: int) -> None: ...


class Places:
    """How many buffers there may be, whosever they are."""

    def __init__(self, most: int = MOST_TOGETHER) -> None:
        self._most, self._taken = most, 0

    def take(self) -> None:
        """Raises `NoRoom`."""
        if self._taken >= self._most:
            raise NoRoom(f"this node has {self._most} buffers, which is the most: fewer and larger ones do as well")
        self._taken += 1

    def give_back(self) -> None:
        self._taken -= 1


class Buffer:
    """One tensor. Take hold of it by `use` for as long as its bytes are wanted."""

    def __init__(self, tensor: Allocated, size_bytes: int, memory: Memory, given_back: Callable[[], None]) -> None:
        self.handle, self.dtype, self.shape, self.device = tensor.handle, tensor.dtype, tensor.shape, tensor.device
        self.size_bytes = size_bytes
        self._memory, self._given_back = memory, given_back
        self._users = 0
        self._dropped = False

    @contextmanager
    def use(self) -> Iterator[Memory]:
        """Its memory stays meanwhile, even when the buffer is freed."""
        self._users += 1
        try:
            yield self._memory
        finally:
            self._users -= 1
            if self._dropped and not self._users:
                self._memory.close(self._given_back)

    def drop(self) -> None:
        """It has no name any more."""
        assert not self._dropped, "a buffer is freed once"
        self._dropped = True
        if not self._users:
            self._memory.close(self._given_back)


class BufferSpace:
    def __init__(
        self,
        owner: str,
        lender: Lender,
        make: MakeMemory = memory_on,
        most_buffers: int = HANDLES,
        places: Places | None = None,
    ) -> None:
        """`places` are those of all sessions together."""
        self._owner, self._lender, self._make, self._most = owner, lender, make, most_buffers
        self._places = places or Places()
        self._buffers: dict[int, Buffer] = {}
        self._turn = asyncio.Lock()  # one number asked for twice at once is one buffer
        self._held_bytes = 0
        self._over = False

    def __len__(self) -> int:
        return len(self._buffers)

    @property
    def bytes_held(self) -> int:
        """Also of buffers that were freed and are still read or written."""
        return self._held_bytes

    async def alloc(self, wanted: Alloc) -> Allocated:
        """A buffer of zeros, or the one that is there under this number with this type and shape.

        Raises `RequestError` where the number stands for another tensor or there are too many, `NoRoom`,
        `DeviceOutOfMemory`, and `SessionGone`."""
        async with self._turn:
            known = self._buffers.get(wanted.handle)
            if known is None:
                known = self._buffers[wanted.handle] = await self._made(wanted)
            elif (known.dtype, known.shape) != (wanted.dtype, wanted.shape):
                told = f"buffer {wanted.handle} is {known.dtype.name} of shape {known.shape}; free it first"
                raise RequestError(told, status=409, field="handle")
            elif wanted.device and wanted.device.partition(":")[0] != known.device.partition(":")[0]:
                raise RequestError(f"buffer {wanted.handle} lies on {known.device}", status=409, field="device")
        return self._told(known)

    async def _made(self, wanted: Alloc) -> Buffer:
        self._check_open()
        if len(self._buffers) >= self._most:
            raise RequestError(f"this session has {self._most} buffers, which is the most", field="handle")
        self._places.take()
        try:
            device, memory = await self._memory(wanted)
        except BaseException:
            self._places.give_back()
            raise
        size = wanted.size
        self._held_bytes += size
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def given_back() -> None:
            if threading.get_ident() != thread:  # the last view of it went with garbage that another thread collected
                with suppress(RuntimeError):  # the loop is closed, and with it the account
                    loop.call_soon_threadsafe(given_back)
                return
            self._places.give_back()
            self._held_bytes -= size
            self._lender.release(self._owner, device, size)

        return Buffer(Allocated(wanted.handle, wanted.dtype, wanted.shape, device), size, memory, given_back)

    async def _memory(self, wanted: Alloc) -> tuple[str, Memory]:
        """Booked, and on the device that is answered."""
        device = await self._lender.reserve(self._owner, wanted.device, wanted.size)
        try:
            self._check_open()  # it may have ended while others made room
            return device, self._make(device, wanted.size)
        except BaseException:
            self._lender.release(self._owner, device, wanted.size)
            raise

    @asynccontextmanager
    async def borrowed(self, size_bytes: int) -> AsyncIterator[None]:
        """So much of the host's memory is the session's for a while, without a name. Raises as `alloc`."""
        self._check_open()
        if not size_bytes:
            yield
            return
        device = await self._lender.reserve(self._owner, HOST, size_bytes)
        self._held_bytes += size_bytes
        try:
            self._check_open()
            yield
        finally:
            self._held_bytes -= size_bytes
            self._lender.release(self._owner, device, size_bytes)

    def get(self, handle: int) -> Buffer:
        """Raises `UnknownHandle`."""
        found = self._buffers.get(handle)
        if found is None:
            raise UnknownHandle(handle)
        return found

    def free(self, handles: Iterable[int]) -> int:
        """The bytes of those that were there; what is still read or written goes when that is over."""
        found = [self._buffers.pop(handle) for handle in dict.fromkeys(handles) if handle in self._buffers]
        for buffer in found:
            buffer.drop()
        return sum(buffer.size_bytes for buffer in found)

    def release_all(self) -> int:
        """The session is over: as `free` of all, and there will be none any more."""
        self._over = True
        return self.free(list(self._buffers))

    def _check_open(self) -> None:
        if self._over:
            raise SessionGone("the session is over")

    def _told(self, buffer: Buffer) -> Allocated:
        free = next((one.free_bytes for one in self._lender.accounts if one.device == buffer.device), 0)
        return Allocated(buffer.handle, buffer.dtype, buffer.shape, buffer.device, free)
