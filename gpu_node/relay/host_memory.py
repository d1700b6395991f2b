"""Memory of a buffer on the host: pages of its own, zeros at first, back with the system at once when it ends.

Invariants: a view that somebody still holds keeps the pages, and only then is nothing given back yet; nobody gets a
page with another's bytes. Must not know tensors, sessions or streams.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Protocol

from gpu_node.errors import DeviceOutOfMemory
from wire.frames import Buffer

# From here on the kernel may back it with huge pages: zeroing 4 KiB at a time costs as much as filling them.
HUGE_PAGE_BYTES = 2 << 20


class Landing(Protocol):
    """Where the bytes of one transfer go, one after the other."""

    @property
    def room(self) -> memoryview | None:
        """All of it, to be received into directly; None where bytes have to be handed to `put`."""
        ...

    async def put(self, at: int, data: Buffer) -> None:
        """`at`: behind what was put before."""
        ...

    async def settle(self) -> None:
        """Returns when all that was put has arrived."""
        ...


class Memory(Protocol):
    """Bytes of one buffer, wherever they lie."""

    def staging_bytes(self, size_bytes: int) -> int:
        """What moving so much in or out takes of the host's memory meanwhile."""
        ...

    def landing(self, offset: int, size_bytes: int) -> Landing: ...

    def parts(self, offset: int, size_bytes: int, most_bytes: int) -> AsyncGenerator[memoryview, None]:
        """Views of the bytes in order, none larger than `most_bytes`; they may be kept and sent without a copy."""
        ...

    def close(self, given_back: Callable[[], None]) -> None:
        """Nobody uses it any more. `given_back` is called when the memory is really free: at once, or when the last
        view of it is gone that waits to be sent."""
        ...


class HostMemory:
    def __init__(self, size_bytes: int) -> None:
        """Zeros. Raises `DeviceOutOfMemory` when the system refuses."""
        self._pages: mmap.mmap | None = None
        self._view = memoryview(bytearray())  # of no page: a tensor may have no element
        if not size_bytes:
            return
        try:
            pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise DeviceOutOfMemory(f"the system has no {size_bytes} bytes to give") from error
        if size_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them: slower, nothing else
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._pages, self._view = pages, memoryview(pages)

    @property
    def view(self) -> memoryview:
        return self._view

    def staging_bytes(self, size_bytes: int) -> int:
        return 0

    def landing(self, offset: int, size_bytes: int) -> Landing:
        return _HostLanding(self._view[offset : offset + size_bytes])

    async def parts(self, offset: int, size_bytes: int, most_bytes: int) -> AsyncGenerator[memoryview, None]:
        end = offset + size_bytes
        for start in range(offset, end, most_bytes):
            yield self._view[start : min(start + most_bytes, end)]

    def close(self, given_back: Callable[[], None]) -> None:
        pages, self._pages = self._pages, None
        self._view = memoryview(b"")
        if pages is None:
            given_back()
            return
        try:
            pages.close()
        except BufferError:  # frames that wait to be sent: the pages go with the last of them
            weakref.finalize(pages, given_back).atexit = False
        else:
            given_back()


class _HostLanding:
    def __init__(self, room: memoryview) -> None:
        self.room = room

    async def put(self, at: int, data: Buffer) -> None:
        self.room[at : at + len(data)] = data

    async def settle(self) -> None:
        pass
