"""What waits to be sent: a queue per stream, served in turns, as far as credit goes.

Frames of one stream leave in order. Frames that need no credit leave first. A stream without credit loses its turn
and stalls nobody. Headers are made when a frame leaves, for only then is its place in the sequence known. Payloads
are kept as the buffers they came in, and all but small ones leave as these; the caller leaves them unchanged until
they are sent.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from wire.errors import QueueFull
from wire.flow import OwnCredit, cost_of
from wire.frames import (
    HEADER_SIZE,
    SEQUENCE_MASK,
    Buffer,
    Checksum,
    Flags,
    FrameType,
    make_header,
    pack_header,
    pack_plain,
)
from wire.limits import (
    FRAME_COST,
    INITIAL_CONNECTION_CREDIT,
    INITIAL_STREAM_CREDIT,
    LARGEST_PAYLOAD,
    SMALLEST_CUT,
    Limits,
)

__all__ = ["SIZE_FIELD", "Line", "Outbox", "Waiting", "make_waiting", "size_of"]

# Below this, copying a payload behind its header costs less than one more entry in a gather write.
JOINED_MOST = 1024
# So much may have its place before anything was written: credit bounds it too, but this is what one write takes.
READY_MOST = 64 << 10
SIZE_FIELD = struct.Struct(">I")
_CAN_BE_CUT = frozenset({Flags.NONE, Flags.END})


class Waiting(NamedTuple):
    """A frame without its place: `pieces` are the payload on the wire, `cost` is what it takes of credit."""

    type: FrameType
    stream_id: int
    flags: Flags
    pieces: tuple[Buffer, ...]
    size: int
    cost: int = 0


# As the class does it, without a call of Python in between.
make_waiting: Callable[[tuple[Any, ...]], Waiting] = partial(tuple.__new__, Waiting)


@dataclass(slots=True, eq=False)
class Line:
    """One stream's frames; `queued` is their cost."""

    credit: OwnCredit = field(default_factory=lambda: OwnCredit(INITIAL_STREAM_CREDIT))
    frames: deque[Waiting] = field(default_factory=deque)
    queued: int = 0
    may_cut: bool = False
    in_turn: bool = False
    started: bool = False


class Outbox:
    """Holds no more than `limits` allow: `check` and `add_control` raise QueueFull beyond."""

    def __init__(self, limits: Limits, checksum: Checksum) -> None:
        self._limits, self._checksum = limits, checksum
        self.credit = OwnCredit(INITIAL_CONNECTION_CREDIT)
        self._control: deque[Waiting] = deque()
        self._grants: dict[int, int] = {}
        self._lines: dict[int, Line] = {}
        self._turns: deque[Line] = deque()
        self._queued = 0
        self._moved: set[int] = set()
        self._ready: list[Buffer] = []
        self._ready_bytes = 0
        self._sequence = 0

    def open(self, stream_id: int, *, may_cut: bool = False) -> Line:
        """A stream begins, with the credit that every stream begins with. `may_cut`: its DATA may come in more frames
        than it was given in."""
        line = self._lines[stream_id] = Line(may_cut=may_cut)
        return line

    def close(self, stream_id: int) -> None:
        """The stream is over; what it had waiting is dropped."""
        self.clear(stream_id)
        self.withhold(stream_id)
        line = self._lines.pop(stream_id)
        if line.in_turn:
            self._turns.remove(line)

    def clear(self, stream_id: int) -> None:
        """Drops what waits of a stream."""
        line = self._lines[stream_id]
        self._queued -= line.queued
        line.frames.clear()
        line.queued = 0

    def clear_all(self) -> None:
        """Drops what waits of all streams, and credit that was to be given."""
        for stream_id in self._lines:
            self.clear(stream_id)
        self._grants.clear()

    def has_started(self, stream_id: int) -> bool:
        """Whether any frame of the stream has left."""
        return self._lines[stream_id].started

    def has_waiting(self, stream_id: int) -> bool:
        return bool(self._ready or self._lines[stream_id].frames)

    def room(self, stream_id: int) -> int:
        """How many bytes of payload one more frame of this stream may have."""
        queued = self._lines[stream_id].queued
        if not queued:
            return LARGEST_PAYLOAD
        return max(
            0, min(self._limits.stream_queue - queued, self._limits.connection_queue - self._queued) - cost_of(0)
        )

    def moved_streams(self) -> set[int]:
        """Those of which frames have left since the last call."""
        moved, self._moved = self._moved, set()
        return moved

    def check(self, line: Line | None, cost: int) -> None:
        """Raises QueueFull when a frame of `cost` has no room; None is a stream that is yet to begin.

        A stream with nothing waiting always has room for a frame, and a new one for a small request: who waits for room
        holds that frame as well, and streams at a standstill shall not fill the queue of the others.
        """
        queued = 0 if line is None else line.queued
        if self._queued + cost <= self._limits.connection_queue and queued + cost <= self._limits.stream_queue:
            return
        if queued or (line is None and cost > self._limits.stream_share):
            raise QueueFull(f"{self._queued} bytes wait to be sent, {queued} of them on this stream")

    def add(self, frame: Waiting, line: Line) -> None:
        """A frame of the stream whose line it is."""
        line.frames.append(frame)
        line.queued += frame.cost
        self._queued += frame.cost
        if not line.in_turn:
            self._give_turn(line)

    def put(self, kind: FrameType, stream_id: int, payload: bytes, line: Line) -> bool:
        """A small frame of a stream that may leave before all that waits: it has its place at once, and is as good as
        sent. False, and nothing is done, where anything stands in its way.
        """
        size, own, shared = len(payload), line.credit, self.credit
        if size >= JOINED_MOST or self._turns or line.frames or self._ready_bytes > READY_MOST:
            return False
        if own.left <= 0 or shared.left <= 0:
            return False
        sequence = self._sequence
        self._ready.append(pack_plain(kind, stream_id, payload, sequence, self._checksum))
        self._sequence = (sequence + 1) & SEQUENCE_MASK
        self._ready_bytes += HEADER_SIZE + size
        own.left -= size + FRAME_COST
        shared.left -= size + FRAME_COST
        line.started = True
        return True

    def forget_ready(self) -> None:
        """Nothing is sent any more."""
        self._ready.clear()

    def add_control(self, frame: Waiting, *, is_last: bool = False) -> None:
        """For frames that need no credit. Raises QueueFull when the peer has not read for long, but for a last word."""
        if len(self._control) >= self._limits.control_frames and not is_last:
            raise QueueFull(f"{len(self._control)} frames wait because the peer does not read")
        self._control.append(frame)

    def give(self, stream_id: int, credit: int) -> None:
        """Credit for the peer, together with what waits for it already: so there is one CREDIT a stream at most."""
        self._grants[stream_id] = self._grants.get(stream_id, 0) + credit

    def withhold(self, stream_id: int) -> None:
        """The peer has no use for the stream's credit any more."""
        self._grants.pop(stream_id, None)

    def grant(self, stream_id: int, credit: int) -> None:
        """The peer gives credit, for the connection on stream 0. Raises CreditExceeded."""
        if stream_id == 0:
            self.credit.add(credit)
            return
        line = self._lines[stream_id]
        line.credit.add(credit)
        self._give_turn(line)

    def take(self, most_bytes: int) -> list[Buffer]:
        """Headers and payloads to write now, in order: about `most_bytes`, at least one frame if any may go."""
        out, total = self._ready, self._ready_bytes
        self._ready, self._ready_bytes = [], 0
        while total < most_bytes and (frame := self._next()) is not None:
            kind, stream_id, flags, pieces, size, _ = frame
            header = pack_header(make_header((kind, flags, stream_id, size, self._sequence, 0)), pieces, self._checksum)
            if size < JOINED_MOST:
                out.append(b"".join((header, *pieces)))
            else:
                out.append(header)
                out.extend(pieces)
            self._sequence = (self._sequence + 1) & SEQUENCE_MASK
            total += HEADER_SIZE + size
        return out

    @property
    def can_take(self) -> bool:
        """Whether `take` would give anything now."""
        return bool(self._ready or self._control or self._grants) or (
            self.credit.left > 0 and any(_may_go(line) for line in self._turns)
        )

    def _next(self) -> Waiting | None:
        if self._control:
            return self._control.popleft()
        if self._grants:
            return _credit_frame(*self._grants.popitem())
        if self.credit.left <= 0:
            return None
        while self._turns:
            line = self._turns.popleft()
            line.in_turn = False
            if line.frames and line.credit.left > 0:
                return self._leave(line)
        return None

    def _leave(self, line: Line) -> Waiting:
        frame = line.frames.popleft()
        if line.may_cut and frame.cost > line.credit.left:
            frame = self._cut(line, frame)
        cost = frame.cost
        self._moved.add(frame.stream_id)
        line.started = True
        line.queued -= cost
        self._queued -= cost
        line.credit.spend(cost)
        self.credit.spend(cost)
        if line.frames:
            self._give_turn(line)
        return frame

    def _cut(self, line: Line, frame: Waiting) -> Waiting:
        """The part of a frame that credit covers; the rest waits in front of the others."""
        kind, number, flags, pieces, size, _ = frame
        most = max(line.credit.left - FRAME_COST, SMALLEST_CUT)
        if kind is not FrameType.DATA or most + SMALLEST_CUT >= size or len(pieces) != 1 or flags not in _CAN_BE_CUT:
            return frame
        view = memoryview(pieces[0])
        line.frames.appendleft(Waiting(kind, number, flags, (view[most:],), size - most, cost_of(size - most)))
        line.queued += FRAME_COST
        self._queued += FRAME_COST
        return Waiting(kind, number, Flags.NONE, (view[:most],), most, cost_of(most))

    def _give_turn(self, line: Line) -> None:
        if not line.in_turn and line.frames and line.credit.left > 0:
            line.in_turn = True
            self._turns.append(line)


def size_of(pieces: Iterable[Buffer]) -> int:
    """Bytes of a payload that is given in pieces, each of them flat."""
    return sum(map(len, pieces))


def _credit_frame(stream_id: int, credit: int) -> Waiting:
    payload = SIZE_FIELD.pack(credit)
    return Waiting(FrameType.CREDIT, stream_id, Flags.NONE, (payload,), len(payload))


def _may_go(line: Line) -> bool:
    return bool(line.frames) and line.credit.left > 0
