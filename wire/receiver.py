"""Judges what arrives: first the header, before there is room for its payload, then the whole frame.

Only RemoteErrors are raised here, and no state changes before a frame is whole and its checksum is right. What the
events of `connection.py` are made of is decided here; sending is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from wire.errors import BadPayload, IllegalReceive, QueueFull, RemoteError, TooLarge
from wire.flow import cost_of
from wire.frames import CHECKED_SIZE, HEADER_SIZE, PLAIN, Buffer, Checksum, Flags, FrameType, Header, unpack_fields
from wire.limits import FRAME_COST, LARGEST_PAYLOAD
from wire.outbox import Waiting
from wire.reader import FrameReader
from wire.rules import Meaning, check_answer
from wire.state import Role, StreamState, Way
from wire.streams import ROOMLESS, SIZE_FIELD, Books, Stream

__all__ = ["Codec", "CreditReceived", "Event", "FrameReceived", "Receiver"]

# A driver may have to read on after the end, into room that nobody looks at.
SCRATCH_FOR_NOBODY = 4096


class Codec(Protocol):
    """LZ4 blocks without a frame or a size; given by the driver."""

    def compress(self, data: Buffer, /) -> Buffer: ...

    def decompress(self, data: Buffer, size: int, /) -> Buffer:
        """Never makes more than `size` bytes; raises ValueError for what is not a block of exactly that."""
        ...


class FrameReceived(NamedTuple):
    """A frame, its payload as it was before compression. When done with it, give it to `Connection.release`.

    `placed`: the payload lies in room that `receive_into` named, and needs no release.
    """

    type: FrameType
    stream_id: int
    payload: memoryview
    ends: bool
    cost: int = 0
    placed: bool = False
    stream: Stream | None = None


class CreditReceived(NamedTuple):
    """More may be sent: on one stream, or on all for stream 0. `Connection.room` may grow after the next sending."""

    stream_id: int


Event = FrameReceived | CreditReceived
# As the class does it, without a call of Python in between.
_make_received: Callable[[tuple[Any, ...]], FrameReceived] = partial(tuple.__new__, FrameReceived)
# What arrives in these states is always somebody's.
_HEARD = frozenset({StreamState.OPEN, StreamState.ENDED})


class Receiver:
    """The receiving half of a connection; `events` collects until somebody takes them."""

    def __init__(self, books: Books, checksum: Checksum, codec: Codec | None) -> None:
        self.events: list[Event] = []
        self.may_decompress = False
        self._books, self._codec = books, codec
        self._checksum = checksum
        self._reader = FrameReader(self._admit, self._deliver, checksum, self._take_usual)
        self._placed = False
        self._meaning: Meaning

    def receive(self, data: Buffer) -> None:
        if self._books.is_deaf:
            return
        try:
            self._reader.receive(data)
        except (RemoteError, QueueFull) as error:
            self._give_up(error)

    def get_buffer(self) -> memoryview:
        return memoryview(bytearray(SCRATCH_FOR_NOBODY)) if self._books.is_deaf else self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        if self._books.is_deaf:
            return
        try:
            self._reader.buffer_updated(count)
        except (RemoteError, QueueFull) as error:
            self._give_up(error)

    def end(self) -> None:
        if self._books.is_deaf:
            return
        try:
            self._reader.end()
        except RemoteError as error:
            self._give_up(error)

    def forget_rooms(self) -> None:
        for stream in self._books.streams.values():
            stream.rooms.clear()
        if self._placed:
            self._reader.let_go()
            self._placed = False

    def let_go(self, stream: Stream) -> None:
        """After its state has changed: where nobody waits any more, nothing more goes into rooms that were named."""
        if self._placed and stream.state in ROOMLESS and self._reader.is_within(stream.number):
            self._reader.let_go()
            self._placed = False

    def _give_up(self, error: Exception) -> None:
        if self._books.is_deaf:
            return  # what follows the last frame means nothing, whatever it looks like
        self._books.break_off()
        if isinstance(error, QueueFull):
            raise TooLarge("the peer makes us answer and never reads") from error
        raise error

    def _take_usual(self, data: memoryview, start: int, filled: int, due: int) -> int:
        """An answer on an open stream, without flags, whole and right: what the rest of this class does, in one go, for
        every token comes this way. Returns its end; 0, and nothing has happened, for all else, faults too.
        """
        kind, second, stream_id, size, sequence, checksum = unpack_fields(data, start)
        books, first = self._books, start + HEADER_SIZE
        end: int = first + size
        if second != PLAIN or end > filled or sequence != due or not books.hears_answers:
            return 0
        stream = books.streams.get(stream_id)
        if stream is None or stream.given.left <= 0 or books.given.left <= 0:
            return 0
        known = stream.usual.get(kind)
        payload = data[first:end].tobytes()
        if known is None or self._checksum(payload, self._checksum(data[start : start + CHECKED_SIZE], 0)) != checksum:
            return 0
        cost = size + FRAME_COST
        books.take(stream, cost)
        self.events.append(_make_received((known, stream_id, memoryview(payload), False, cost, False, stream)))
        return end

    def _admit(self, header: Header) -> memoryview | None:
        self._placed = False
        books = self._books
        if books.is_deaf:
            return None  # the rest of what came with the last frame; nobody hears it
        kind, flags, stream_id, size, _, _ = header
        meaning = self._meaning = books.heard.of(kind, flags, stream_id)
        if meaning.move not in books.receives:
            books.check(meaning, Way.RECEIVE)
        if meaning.is_compressed and (self._codec is None or not self.may_decompress):
            raise IllegalReceive("a compressed frame, which was not agreed on")
        if size > meaning.most:
            raise TooLarge(f"{kind.name} of {size} bytes; {meaning.most} is the most")
        return self._admit_on_stream(header, meaning) if stream_id else None

    def _admit_on_stream(self, header: Header, meaning: Meaning) -> memoryview | None:
        books = self._books
        stream = books.streams.get(header.stream_id)
        books.after(stream, meaning, Way.RECEIVE)
        if stream is None:
            self._admit_new(meaning)
            return None
        if meaning.is_request and stream.state is StreamState.IDLE:
            raise IllegalReceive(f"a request on stream {header.stream_id}, whose answer is still under way")
        if books.role is Role.CLIENT and header.type not in stream.answers:
            check_answer(stream.request, header.type, Way.RECEIVE)
        if meaning.is_free:
            return None
        books.given.check()
        stream.given.check()
        if stream.rooms and meaning.is_placed:
            room = stream.place(header.size)
            self._placed = room is not None
            return room
        return None

    def _admit_new(self, meaning: Meaning) -> None:
        """A frame of a stream that is not open."""
        if meaning.is_free:
            return
        self._books.given.check()
        if len(self._books.streams) >= self._books.limits.streams:
            raise TooLarge(f"more than {self._books.limits.streams} streams at once")

    def _deliver(self, header: Header, payload: memoryview) -> None:
        books = self._books
        if books.is_deaf:
            return
        books.move(self._meaning, Way.RECEIVE)
        kind, _, stream_id, size, _, _ = header
        if kind is FrameType.CREDIT:
            self._take_credit(stream_id, payload)
        elif stream_id:
            self._deliver_on_stream(header, payload)
        else:
            if kind is FrameType.PING and books.may_talk:
                books.outbox.add_control(Waiting(FrameType.PONG, 0, Flags.NONE, (payload,), size))
            self.events.append(FrameReceived(kind, 0, payload.toreadonly(), header.ends))

    def _deliver_on_stream(self, header: Header, payload: memoryview) -> None:
        books, meaning = self._books, self._meaning
        kind, _, stream_id, size, _, _ = header
        stream = books.streams.get(stream_id)
        if stream is None:
            if not meaning.is_request:
                return  # a CANCEL that crossed the end of its stream
            stream = books.begin(stream_id, kind)
        before, after = stream.state, books.after(stream, meaning, Way.RECEIVE)
        if meaning.is_compressed:
            payload = self._decompressed(stream, header, payload)
            size = len(payload)
        elif stream.rooms and not self._placed and meaning.is_placed and (room := stream.place(size)) is not None:
            # The room was named while the frame was on its way: it has its place before those that come after it.
            room[:] = payload
            payload, self._placed = room, True
        cost, placed = 0 if meaning.is_free else cost_of(size), self._placed
        if cost:
            books.take(stream, cost)
        unheard = before not in _HEARD and _is_unheard(before, meaning)
        if not unheard:
            told = (kind, stream_id, payload.toreadonly(), meaning.ends, cost, placed, stream)
            self.events.append(_make_received(told))
        if after is not before:
            books.settle(stream, after)
        if cost and (unheard or placed):
            books.give_back(stream, cost)

    def _decompressed(self, stream: Stream, header: Header, payload: memoryview) -> memoryview:
        assert self._codec is not None
        size = SIZE_FIELD.unpack_from(payload)[0] if len(payload) > SIZE_FIELD.size else 0
        if not 0 < size <= LARGEST_PAYLOAD:
            raise BadPayload(f"a compressed payload that says it was {size} bytes")
        room = stream.place(size) if header.type is FrameType.DATA else None
        try:
            plain = memoryview(self._codec.decompress(payload[SIZE_FIELD.size :], size)).cast("B")
        except ValueError as error:
            raise BadPayload(f"a compressed payload cannot be read: {error}") from error
        if len(plain) != size:
            raise BadPayload(f"a compressed payload is {len(plain)} bytes and not the {size} it says")
        if room is None:
            return plain
        room[:] = plain
        self._placed = True
        return room

    def _take_credit(self, stream_id: int, payload: memoryview) -> None:
        if len(payload) != SIZE_FIELD.size:
            raise BadPayload(f"CREDIT of {len(payload)} bytes, not {SIZE_FIELD.size}")
        if stream_id and stream_id not in self._books.streams:
            return  # it crossed the end of its stream
        self._books.outbox.grant(stream_id, SIZE_FIELD.unpack(payload)[0])
        self.events.append(CreditReceived(stream_id))


def _is_unheard(before: StreamState, meaning: Meaning) -> bool:
    """Nobody waits for the rest of a stream that was cancelled or answered; only the end of it is news."""
    if before is StreamState.IDLE:
        return not meaning.is_request
    return before is StreamState.ANSWERED or not meaning.ends
