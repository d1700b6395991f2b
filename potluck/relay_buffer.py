"""A tensor that lies in a node's memory, for asyncio.

It is a number on the node and what is known of it here; it is freed by `free`, or with the client. Bytes move by
`relay_tensors.py`, without copies on this side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

from transport.session import RelaySession
from wire.messages_memory import Allocated, Free
from wire.messages_session import Ack
from wire.tensors import DType, TensorFlags, TensorHeader

from .errors import Misuse, UnexpectedAnswer
from .relay_arrays import ArrayLike, TensorData, dtype_named, named, tensor_of
from .relay_seam import translated
from .relay_tensors import read_into, write

__all__ = ["AsyncRemoteTensor"]


class AsyncRemoteTensor:
    """Made by `AsyncRelay.tensor`, or by `run` with `keep`. In an `async with` block it is freed at the end."""

    def __init__(self, session: RelaySession, place: str, allocated: Allocated) -> None:
        self._session, self._place, self._allocated = session, place, allocated
        self._freed = False

    def __repr__(self) -> str:
        return f"<tensor {self.handle} on {self._place}: {self.dtype} {self.shape}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.free()

    @property
    def handle(self) -> int:
        """Its number within this client's session."""
        return self._allocated.handle

    @property
    def dtype(self) -> str:
        return named(self._allocated.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._allocated.shape

    @property
    def device(self) -> str:
        return self._allocated.device

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self._allocated.dtype.size

    async def put(
        self,
        data: ArrayLike,
        *,
        offset: int | None = None,
        checked: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Write all of it; or, from byte `offset` on, as many elements as `data` has.

        `data` must stay as it is meanwhile. `checked` adds a CRC of each piece to that of the frames.
        """
        source = tensor_of(data, self.dtype if isinstance(data, bool | int | float | list | tuple) else None)
        if dtype_named(source.dtype) not in (self._allocated.dtype, DType.UINT8):  # plain bytes may be anything
            raise Misuse(f"the tensor holds {self.dtype} and not {source.dtype}")
        start = offset or 0
        if start < 0 or start + source.nbytes > self.nbytes or (offset is None and source.nbytes != self.nbytes):
            raise Misuse(f"{source.nbytes} bytes at {start} do not fit a tensor of {self.nbytes}")
        with translated(self._place):
            await write(self._session, self._header(start, checked), source.data, on_bytes)

    async def get(
        self,
        into: ArrayLike = None,
        *,
        offset: int = 0,
        shape: Sequence[int] | None = None,
        checked: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> TensorData:
        """Read all of it; or, from byte `offset` on, as many elements as `shape` has.

        `into`: writable memory of the same size, such as a numpy array, that the bytes are received into.
        """
        wanted = self.shape if shape is None else tuple(shape)
        size = math.prod(wanted) * self._allocated.dtype.size
        if offset < 0 or offset + size > self.nbytes:
            raise Misuse(f"{size} bytes from {offset} on are not within {self.nbytes}")
        room = memoryview(bytearray(size)) if into is None else _room(into, size)
        with translated(self._place):
            await read_into(self._session, self._header(offset, checked), room, on_bytes)
        return TensorData(room, self.dtype, wanted)

    async def free(self) -> int:
        """Give it back; the bytes that came free. Harmless when done twice."""
        if self._freed:
            return 0
        self._freed = True
        with translated(self._place):
            answer = await self._session.ask(Free((self.handle,)))
        if not isinstance(answer, Ack):
            raise UnexpectedAnswer(f"{type(answer).__name__} where Ack was due")
        return answer.amount

    def _header(self, offset: int, checked: bool) -> TensorHeader:
        flags = TensorFlags.CHECKED if checked else TensorFlags.NONE
        return TensorHeader(self._allocated.dtype, self.shape, 0, offset, batch=self.handle, flags=flags)


def _room(into: ArrayLike, size: int) -> memoryview:
    room = memoryview(into)
    if room.readonly or not room.c_contiguous or room.nbytes != size:
        raise Misuse(f"what to read into must be writable, contiguous, and {size} bytes")
    return room.cast("B")
