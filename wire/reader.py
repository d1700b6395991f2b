"""Bytes in, whole frames out: cuts the stream of one direction and checks header, order and checksum.

A payload that has not arrived whole is received straight into the room where it stays, so nothing large is copied.
Before any room is made for a payload the owner is asked (`admit`), and it may offer room of its own. At most one
frame is unfinished at a time. The reader knows nothing of streams, states and credit.
"""

from __future__ import annotations

from collections.abc import Callable

from wire.errors import BadChecksum, BadSequence, CutShort
from wire.frames import HEADER_SIZE, SEQUENCE_MASK, Buffer, Checksum, Header, checksum_of, unpack_header

__all__ = ["Admit", "Deliver", "FrameReader", "Usual"]

# One system call brings many frames of tokens; more would only be copied in vain when a bulk payload follows.
SCRATCH_SIZE = 64 << 10
# Before more than this has come at once: most connections are silent, and a thousand of them shall cost a few MiB.
FIRST_SCRATCH_SIZE = 4 << 10

Admit = Callable[[Header], "memoryview | None"]
Deliver = Callable[[Header, memoryview], None]
Usual = Callable[[memoryview, int, int, int], int]


class FrameReader:
    """Feed it with `receive`, or fill `get_buffer()` and tell `buffer_updated` how much arrived.

    `admit(header)` raises a RemoteError to refuse a frame, or returns the room for its payload (exactly `size` bytes),
    or None for room of the reader's own. `deliver(header, payload)` gets every whole frame in order.
    `usual(bytes, start, end, sequence)` may take the frame at `start`, if it is whole and must have that sequence, and
    return where it ends; with 0 it goes the long way.
    """

    def __init__(self, admit: Admit, deliver: Deliver, checksum: Checksum, usual: Usual = lambda *_: 0) -> None:
        self._admit, self._deliver, self._checksum, self._usual = admit, deliver, checksum, usual
        self._scratch = memoryview(bytearray(FIRST_SCRATCH_SIZE))
        self._filled = 0
        self._header: Header | None = None
        self._fields = b""
        self._room = memoryview(b"")
        self._in_room = 0
        self._sequence = 0
        self._after_bulk = False

    @property
    def is_between_frames(self) -> bool:
        return self._header is None and self._filled == 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty. The view is good until `buffer_updated`."""
        if self._header is not None:
            return self._room[self._in_room :]
        # After one bulk frame comes another: reading no further than its header lets its payload go where it stays.
        if self._after_bulk and self._filled < HEADER_SIZE:
            return self._scratch[self._filled : HEADER_SIZE]
        return self._scratch[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """`count` bytes lie in the buffer last got. Delivers the frames that are whole; raises RemoteErrors."""
        if self._header is None:
            self._filled += count
            self._cut()
            return
        self._in_room += count
        if self._in_room == len(self._room):
            self._after_bulk = True
            header, room = self._header, self._room
            self._header, self._room = None, memoryview(b"")
            self._finish(header, self._fields, room)

    def receive(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self.buffer_updated(count)
            rest = rest[count:]

    def end(self) -> None:
        """No more bytes come. Raises CutShort when they end within a frame."""
        if not self.is_between_frames:
            raise CutShort("the connection ended within a frame")

    def is_within(self, stream_id: int) -> bool:
        """Whether a frame of this stream is on its way."""
        return self._header is not None and self._header.stream_id == stream_id

    def let_go(self) -> None:
        """The frame that is on its way goes on in room of the reader's own."""
        if self._header is not None:
            room = memoryview(bytearray(len(self._room)))
            room[: self._in_room] = self._room[: self._in_room]
            self._room = room

    def _cut(self) -> None:
        start, filled = 0, self._filled
        while filled - start >= HEADER_SIZE:
            end = self._usual(self._scratch, start, filled, self._sequence)
            if end:
                self._sequence = (self._sequence + 1) & SEQUENCE_MASK
                self._after_bulk = False
                start = end
            else:
                start = self._begin(start)
        if start == filled:
            self._filled = 0
        elif start:
            rest = filled - start
            self._scratch[:rest] = bytes(self._scratch[start : self._filled])
            self._filled = rest
        is_bulk = self._header is not None and self._header.size >= FIRST_SCRATCH_SIZE
        if filled == len(self._scratch) < SCRATCH_SIZE and not is_bulk:
            wider = memoryview(bytearray(SCRATCH_SIZE))
            wider[: self._filled] = self._scratch[: self._filled]
            self._scratch = wider

    def _begin(self, start: int) -> int:
        """Starts the frame at `start` of the scratch; returns where its bytes in there end."""
        scratch, first = self._scratch, start + HEADER_SIZE
        header = unpack_header(scratch, start)
        sequence, size = header.sequence, header.size
        if sequence != self._sequence:
            raise BadSequence(f"frame {sequence} where {self._sequence} was due")
        self._sequence = (sequence + 1) & SEQUENCE_MASK
        room = self._admit(header)
        here = self._filled - first
        if here < size:
            self._wait_for_rest(header, room, scratch[start : self._filled])
            return self._filled
        payload = scratch[first : first + size]
        if room is None:
            payload = memoryview(bytes(payload))
        else:
            room[:] = payload
            payload = room
        self._after_bulk = False
        self._finish(header, scratch[start:first], payload)
        return first + size

    def _wait_for_rest(self, header: Header, room: memoryview | None, here: memoryview) -> None:
        if room is None:
            room = memoryview(bytearray(header.size))
        self._header, self._room, self._in_room = header, room, len(here) - HEADER_SIZE
        self._fields = bytes(here[:HEADER_SIZE])
        room[: self._in_room] = here[HEADER_SIZE:]

    def _finish(self, header: Header, fields: Buffer, payload: memoryview) -> None:
        if checksum_of(fields, payload, self._checksum) != header.checksum:
            raise BadChecksum(f"frame {header.sequence} has changed on the way")
        self._deliver(header, payload)
