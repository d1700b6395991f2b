"""Messages about lent blocks over a link: one frame, or several where the other side takes no larger ones.

Invariants: a message is at most so large as both sides may ask for; memory for it grows with what has come, not with
what is announced. Must not know what messages say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpu_node.memory.lend_messages import MESSAGE_BYTES, Bytes
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.links import Link
from wire.errors import OutOfBounds
from wire.tensors import DType, TensorFlags, TensorHeader, flat_view

# Headers of messages in one frame are sent again as they are: steps are alike.
MOST_HEADERS = 64


class LendChannel:
    """As `memory.lend_messages.Channel`. Raises `LinkError`."""

    def __init__(self, link: Link, most_bytes: int = MESSAGE_BYTES) -> None:
        self.link, self._most = link, most_bytes
        self._headers: dict[int, TensorHeader] = {}
        self._room = bytearray()

    def say(self, *parts: Bytes) -> None:
        views = [view for view in map(flat_view, parts) if view.nbytes]
        total = sum(view.nbytes for view in views)
        if not 0 < total <= self._most:
            raise OutOfBounds(f"a message about lent blocks has 1 to {self._most} bytes, not {total}")
        if total <= self.link.most_bytes:
            self.link.send(self._header(total), *views)
            return
        at = 0
        for piece in _pieces(views, self.link.most_bytes):
            size = sum(view.nbytes for view in piece)
            flags = TensorFlags.LAST if at + size == total else TensorFlags.NONE
            self.link.send(TensorHeader(DType.UINT8, (total,), size, at, flags=flags), *piece)
            at += size

    def hear(self) -> memoryview:
        """Valid until the next call."""
        header, data = self.link.receive()
        total = self._check(header, 0, header.shape[0] if len(header.shape) == 1 else 0)
        if header.last:
            return data
        self._room = bytearray(data)
        while not header.last:
            header, data = self.link.receive()
            self._check(header, len(self._room), total)
            self._room += data
        return memoryview(self._room)

    def close(self) -> None:
        self.link.close()

    def _check(self, header: TensorHeader, at: int, total: int) -> int:
        """The header's own numbers agree with each other already."""
        right = header.dtype is DType.UINT8 and header.shape == (total,) and header.offset == at
        if not right or not 0 < total <= self._most or header.last != (at + header.size == total):
            raise self.link.fail(LinkFault("a piece of a message about lent blocks where another was due"))
        return total

    def _header(self, size: int) -> TensorHeader:
        found = self._headers.get(size)
        if found is None:
            if len(self._headers) >= MOST_HEADERS:
                self._headers.clear()
            found = self._headers[size] = TensorHeader(DType.UINT8, (size,), size, flags=TensorFlags.LAST)
        return found


def _pieces(views: Sequence[memoryview], most: int) -> Iterator[list[memoryview]]:
    """All bytes in order, in lists of at most so many."""
    piece: list[memoryview] = []
    left = most
    for view in views:
        while view.nbytes:
            piece.append(view[:left])
            left -= piece[-1].nbytes
            view = view[piece[-1].nbytes :]
            if not left:
                yield piece
                piece, left = [], most
    if piece:
        yield piece
