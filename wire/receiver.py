"""Judges what arrives: first the header, before there is room for its payload, then the whole frame.

Only RemoteErrors are raised here, and no state changes before a frame is whole and its checksum is right. What the
events of `connection.py` are made of is decided here; sending is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from wire.errors import BadPayload, IllegalReceive, QueueFull, RemoteError, TooLarge
from wire.flow import cost_of
from wire.frames import Buffer, Checksum, Flags, FrameType, Header
from wire.limits import LARGEST_PAYLOAD
from wire.outbox import Waiting
from wire.reader import FrameReader
from wire.rules import FREE_OF_CREDIT, check_answer, check_place, largest_payload, stream_move
from wire.state import ANSWERS, Role, StreamState, Way, stream_after
from wire.streams import SIZE_FIELD, Books, Stream

__all__ = ["Codec", "CreditReceived", "Event", "FrameReceived", "Receiver"]

# A driver may have to read on after the end, into room that nobody looks at.
SCRATCH_FOR_NOBODY = 4096


class Codec(Protocol):
    """LZ4 blocks without a frame or a size; given by the driver."""

    def compress(self, data: Buffer, /) -> Buffer: ...

    def decompress(self, data: Buffer, size: int, /) -> Buffer:
        """Never makes more than `size` bytes; raises ValueError for what is not a block of exactly that."""
        ...


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame, its payload as it was before compression. When done with it, give it to `Connection.release`.

    `placed`: the payload lies in room that `receive_into` named, and needs no release.
    """

    type: FrameType
    stream_id: int
    payload: memoryview
    ends: bool
    cost: int = 0
    placed: bool = False
    stream: Stream | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """More may be sent: on one stream, or on all for stream 0. `Connection.room` may grow after the next sending."""

    stream_id: int


Event = FrameReceived | CreditReceived


class Receiver:
    """The receiving half of a connection; `events` collects until somebody takes them."""

    def __init__(self, books: Books, checksum: Checksum, codec: Codec | None) -> None:
        self.events: list[Event] = []
        self.may_decompress = False
        self._books, self._codec = books, codec
        self._reader = FrameReader(self._admit, self._deliver, checksum)
        self._placed = False

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

    def _give_up(self, error: Exception) -> None:
        if self._books.is_deaf:
            return  # what follows the last frame means nothing, whatever it looks like
        self._books.break_off()
        if isinstance(error, QueueFull):
            raise TooLarge("the peer makes us answer and never reads") from error
        raise error

    def _admit(self, header: Header) -> memoryview | None:
        self._placed = False
        if self._books.is_deaf:
            return None  # the rest of what came with the last frame; nobody hears it
        check_place(header, Way.RECEIVE)
        self._books.after(header, Way.RECEIVE)
        if header.compressed and (self._codec is None or not self.may_decompress):
            raise IllegalReceive("a compressed frame, which was not agreed on")
        if header.size > largest_payload(header.type):
            raise TooLarge(f"{header.type.name} of {header.size} bytes; {largest_payload(header.type)} is the most")
        return self._admit_on_stream(header) if header.stream_id else None

    def _admit_on_stream(self, header: Header) -> memoryview | None:
        stream = self._books.streams.get(header.stream_id)
        state = stream.state if stream else StreamState.IDLE
        if stream and state is StreamState.IDLE and header.type in ANSWERS:
            raise IllegalReceive(f"a request on stream {header.stream_id}, whose answer is still under way")
        stream_after(self._books.role, state, Way.RECEIVE, stream_move(header, self._books.peer, Way.RECEIVE))
        if stream and self._books.role is Role.CLIENT:
            check_answer(stream.request, header.type, Way.RECEIVE)
        if header.type in FREE_OF_CREDIT:
            return None
        self._books.given.check()
        if stream is None:
            if len(self._books.streams) >= self._books.limits.streams:
                raise TooLarge(f"more than {self._books.limits.streams} streams at once")
            return None
        stream.given.check()
        room = None if header.compressed or header.type is not FrameType.DATA else stream.place(header.size)
        self._placed = room is not None
        return room

    def _deliver(self, header: Header, payload: memoryview) -> None:
        if self._books.is_deaf:
            return
        self._books.move(header, Way.RECEIVE)
        if header.type is FrameType.CREDIT:
            self._take_credit(header.stream_id, payload)
        elif header.stream_id:
            self._deliver_on_stream(header, payload)
        else:
            if header.type is FrameType.PING and self._books.may_talk:
                self._books.outbox.add_control(Waiting(FrameType.PONG, 0, Flags.NONE, (payload,), header.size))
            self.events.append(FrameReceived(header.type, 0, payload.toreadonly(), header.ends))

    def _deliver_on_stream(self, header: Header, payload: memoryview) -> None:
        books = self._books
        stream = books.streams.get(header.stream_id)
        if stream is None:
            if header.type not in ANSWERS:
                return  # a CANCEL that crossed the end of its stream
            stream = books.begin(header.stream_id, header.type)
        before = stream.state
        after = stream_after(books.role, before, Way.RECEIVE, stream_move(header, books.peer, Way.RECEIVE))
        if header.compressed:
            payload = self._decompressed(stream, header, payload)
        elif header.type is FrameType.DATA and not self._placed and (room := stream.place(len(payload))) is not None:
            # The room was named while the frame was on its way: it has its place before those that come after it.
            room[:] = payload
            payload, self._placed = room, True
        cost = 0 if header.type in FREE_OF_CREDIT else cost_of(len(payload))
        books.given.take(cost)
        stream.given.take(cost)
        # Nobody waits for the rest of a stream that was cancelled or answered; only the end of it is news.
        over = before is StreamState.IDLE and header.type not in ANSWERS
        unheard = over or before is StreamState.ANSWERED or (before is StreamState.CANCELLED and not header.ends)
        if not unheard:
            told = (header.type, header.stream_id, payload.toreadonly(), header.ends, cost, self._placed, stream)
            self.events.append(FrameReceived(*told))
        books.settle(stream, after)
        if cost and (unheard or self._placed):
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
