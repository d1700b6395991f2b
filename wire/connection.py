"""One connection, either role, without I/O: `receive_data`, `events_received`, `data_to_send`.

Every frame in either direction passes the tables of `state.py`, the bounds of `limits.py` and the credit of
`flow.py`. Only a RemoteError leaves the receive path; after one, tell the peer its code with `abandon` and close.
What a peer can make this side hold is the connection's window and two frames. Payloads of messages, time and sockets
are not known here.
"""

from __future__ import annotations

import zlib

from wire.errors import IllegalSend, OutOfBounds, QueueFull
from wire.flow import cost_of
from wire.frames import Buffer, Checksum, Flags, FrameType
from wire.limits import LARGEST_PAYLOAD, LARGEST_STREAM_ID, Limits
from wire.outbox import Waiting, make_waiting, size_of
from wire.receiver import Codec, CreditReceived, Event, FrameReceived, Receiver
from wire.rules import Meaning, check_answer
from wire.state import ANSWERS, ConnectionMove, ConnectionState, Role, StreamMove, StreamState, Way, stream_after
from wire.streams import SIZE_FIELD, Books, Stream

__all__ = ["Codec", "Connection", "CreditReceived", "Event", "FrameReceived"]

# Smaller payloads gain less than the 4 bytes and the work cost.
SMALLEST_COMPRESSED = 64
_NOT_SENT_BY_HAND = frozenset({
    FrameType.CREDIT, FrameType.CANCEL, FrameType.ERROR, FrameType.PONG, FrameType.GOODBYE,
})  # fmt: skip
# The table allows each a few times at most, so they are let out however much waits: they say why it is over.
_LAST_WORDS = frozenset({ConnectionMove.ERROR, ConnectionMove.GOODBYE})


class Connection:
    """`checksum` is CRC-32; with a `codec`, frames may be compressed after `allow_compression`."""

    def __init__(
        self, role: Role, *, limits: Limits | None = None, checksum: Checksum = zlib.crc32, codec: Codec | None = None
    ) -> None:
        self._limits, self._codec = limits or Limits(), codec
        self._books = Books(role, self._limits, checksum)
        self._receiver = Receiver(self._books, checksum, codec)
        self._last_number = 0

    @property
    def role(self) -> Role:
        return self._books.role

    @property
    def state(self) -> ConnectionState:
        return self._books.state

    @property
    def open_streams(self) -> tuple[int, ...]:
        return tuple(self._books.streams)

    def receive_data(self, data: Buffer) -> None:
        """Takes bytes as they came. Raises RemoteError; frames before the fault are still among the events."""
        self._receiver.receive(data)

    def get_buffer(self) -> memoryview:
        """Room for the next bytes, for a driver that receives into buffers; follow with `buffer_updated`."""
        return self._receiver.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """As `receive_data` of the first `count` bytes of the last buffer got."""
        self._receiver.buffer_updated(count)

    def receive_end(self) -> None:
        """The peer sends no more. Raises CutShort within a frame; otherwise look at `state` and the streams."""
        self._receiver.end()

    def events_received(self) -> list[Event]:
        """What has arrived since the last call, in order."""
        events, self._receiver.events = self._receiver.events, []
        return events

    def release(self, event: FrameReceived) -> None:
        """The event's payload needs no room any more: the peer may send as much anew. Once per event."""
        _, _, _, _, cost, placed, stream = event
        if cost and not placed and stream is not None:
            self._books.give_back(stream, cost)

    def allow_compression(self) -> None:
        """Both sides said in the handshake that they can; without a codec this side never says so."""
        if self._codec is None:
            raise OutOfBounds("compression was agreed on without a codec")
        self._receiver.may_decompress = True

    def receive_into(self, stream_id: int, room: memoryview) -> None:
        """DATA of this stream goes into `room` from now on, frame after frame, and after it into rooms named later.

        Each frame must fit into what is left of one room, or the peer is at fault. The bytes are there before their
        checksum is known: they are good when their event arrives. Widens the stream's window to that of a bulk stream.
        """
        if room.readonly or room.format != "B" or room.ndim != 1 or not room.contiguous or not room.nbytes:
            raise OutOfBounds("room must be a writable, flat, contiguous view of bytes")
        self._stream(stream_id).rooms.append(room)
        self.widen(stream_id)

    def forget_rooms(self) -> None:
        """From now on no byte goes into any room that was named: whose they are may want them for something else."""
        self._receiver.forget_rooms()

    def forget_frames(self) -> None:
        """Nothing will be written any more: what waits is dropped, and with it the buffers that it is made of."""
        self._books.outbox.clear_all()
        self._books.outbox.forget_ready()

    def widen(self, stream_id: int) -> None:
        """Lets the peer have a bulk stream's window under way, before this side consumes; less where others have it."""
        self._books.widen(self._stream(stream_id))

    def open_stream(self, kind: FrameType, *payload: Buffer, ends: bool = False, compress: bool = False) -> int:
        """The client asks for something; returns the number of the new stream. Raises as `send` does."""
        if kind not in ANSWERS or self._books.role is Role.SERVER:
            raise IllegalSend(f"the {self._books.role.value} opens no stream with {kind.name}")
        if len(self._books.streams) >= self._limits.streams:
            raise QueueFull(f"{self._limits.streams} streams are open")
        number = self._free_number()
        meaning = self._books.said.to_send(kind, number, ends)
        self._send_on(None, self._frame(meaning, kind, number, payload, compress), meaning)
        self._last_number = number
        return number

    def send(
        self, kind: FrameType, stream_id: int, *payload: Buffer, ends: bool = False, compress: bool = False
    ) -> None:
        """One more frame of a stream, or on stream 0 of the handshake or a PING.

        `payload` is kept, not copied, until it is sent. Raises IllegalSend, QueueFull (wait for `room`) or OutOfBounds;
        then nothing is sent and no state has changed.
        """
        if kind in _NOT_SENT_BY_HAND:
            raise IllegalSend(f"{kind.name} is sent by itself or has a method of its own")
        meaning = self._books.said.to_send(kind, stream_id, ends)
        frame = self._frame(meaning, kind, stream_id, payload, compress)
        if stream_id:
            self._send_on(self._stream(stream_id), frame, meaning)
        else:
            self._send_control(frame, meaning)

    def answer(self, kind: FrameType, stream_id: int, payload: bytes) -> bool:
        """As `send` of the server's small answers, without END, where nothing stands in the way of their leaving next;
        for every token goes this way. False, and nothing is done, for all else: `send` it.
        """
        books = self._books
        stream = books.streams.get(stream_id)
        if stream is None or kind not in stream.usual or not books.says_answers:
            return False
        return books.outbox.put(kind, stream_id, payload, stream.line)

    def room(self, stream_id: int) -> int:
        """The largest payload that `send` takes on this stream now; 0 when it is full or over."""
        known = stream_id in self._books.streams
        return min(LARGEST_PAYLOAD, self._books.outbox.room(stream_id)) if known else 0

    def moved_streams(self) -> set[int]:
        """Those of which frames have left since the last call: where there may be room now that was none."""
        return self._books.outbox.moved_streams()

    def has_waiting(self, stream_id: int) -> bool:
        """Whether frames of this stream have yet to leave by `data_to_send`."""
        return stream_id in self._books.streams and self._books.outbox.has_waiting(stream_id)

    def cancel(self, stream_id: int, *payload: Buffer) -> bool:
        """The client wants no more. False when the server never heard of the stream: then no end of it will come."""
        if self._books.role is Role.SERVER:
            raise IllegalSend("a server ends a stream with an answer or `fail`")
        stream = self._stream(stream_id)
        after = stream_after(Role.CLIENT, stream.state, Way.SEND, StreamMove.CANCEL)
        meaning = self._books.said.to_send(FrameType.CANCEL, stream_id, True)
        frame = self._frame(meaning, FrameType.CANCEL, stream_id, payload)
        if not self._books.outbox.has_started(stream_id):
            self._books.withdraw(stream)
            return False
        self._send_control(frame, meaning)
        self._books.outbox.clear(stream_id)
        self._settle(stream, after)
        return True

    def fail(self, stream_id: int, *payload: Buffer) -> None:
        """The server ends a stream with an ERROR; what of it waits to be sent is dropped."""
        if self._books.role is Role.CLIENT:
            raise IllegalSend("a client ends a stream with `cancel`")
        stream = self._stream(stream_id)
        after = stream_after(Role.SERVER, stream.state, Way.SEND, StreamMove.REPLY_END)
        self._say(FrameType.ERROR, stream_id, payload)
        self._books.outbox.clear(stream_id)
        self._settle(stream, after)

    def goodbye(self, *payload: Buffer) -> None:
        """No more from this side (client), or no new streams (server; its last word when the client has left)."""
        self._say(FrameType.GOODBYE, 0, payload)
        if self.state is ConnectionState.LEAVING:
            self._books.outbox.clear_all()

    def abandon(self, *payload: Buffer) -> None:
        """Tells the peer why the connection is over; write what `data_to_send` gives, then close."""
        self._say(FrameType.ERROR, 0, payload)

    def data_to_send(self, most_bytes: int = 1 << 20) -> list[Buffer]:
        """Buffers for one gather write, in order and about `most_bytes` in all; empty when nothing may go now."""
        taken = self._books.outbox.take(most_bytes)
        self._books.close_finished()
        return taken

    @property
    def wants_to_send(self) -> bool:
        return self._books.outbox.can_take

    def _frame(
        self, meaning: Meaning, kind: FrameType, stream_id: int, payload: tuple[Buffer, ...], compress: bool = False
    ) -> Waiting:
        pieces = payload
        if len(payload) == 1 and type(payload[0]) is bytes:
            size = len(payload[0])
        else:
            pieces = tuple(_flat(piece) for piece in payload if len(piece))
            size = size_of(pieces)
        if size > meaning.most:
            raise OutOfBounds(f"a payload of {size} bytes; {kind.name} has {meaning.most} at most")
        cost = 0 if meaning.is_free else cost_of(size)
        if compress and cost and size >= SMALLEST_COMPRESSED and self._codec and self._receiver.may_decompress:
            block = _flat(self._codec.compress(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
            if SIZE_FIELD.size + len(block) < size:
                whole = (SIZE_FIELD.pack(size), block)
                return Waiting(kind, stream_id, meaning.flags | Flags.COMPRESSED, whole, size_of(whole), cost)
        return make_waiting((kind, stream_id, meaning.flags, pieces, size, cost))

    def _say(self, kind: FrameType, stream_id: int, payload: tuple[Buffer, ...]) -> None:
        """The last word of a stream, or of the connection."""
        meaning = self._books.said.to_send(kind, stream_id, True)
        self._send_control(self._frame(meaning, kind, stream_id, payload), meaning)

    def _send_control(self, frame: Waiting, meaning: Meaning) -> None:
        """A frame that needs no credit; what it means for its stream is the caller's."""
        books = self._books
        books.check(meaning, Way.SEND)
        books.outbox.add_control(frame, is_last=meaning.move in _LAST_WORDS)
        books.move(meaning, Way.SEND)

    def _send_on(self, stream: Stream | None, frame: Waiting, meaning: Meaning) -> None:
        """A frame of `stream`; None is a stream that begins with it."""
        books = self._books
        if meaning.move not in books.sends:
            books.check(meaning, Way.SEND)
        before, after = stream.state if stream else StreamState.IDLE, books.after(stream, meaning, Way.SEND)
        if stream and frame.type not in stream.answers and books.role is Role.SERVER:
            check_answer(stream.request, frame.type, Way.SEND)
        books.outbox.check(stream.line if stream else None, frame.cost)
        stream = stream or books.begin(frame.stream_id, frame.type)
        books.outbox.add(frame, stream.line)
        if after is not before:
            self._settle(stream, after)

    def _settle(self, stream: Stream, after: StreamState) -> None:
        self._books.settle(stream, after)
        self._receiver.let_go(stream)

    def _stream(self, stream_id: int) -> Stream:
        stream = self._books.streams.get(stream_id)
        if stream is None:
            raise IllegalSend(f"stream {stream_id} is not open")
        return stream

    def _free_number(self) -> int:
        number = self._last_number % LARGEST_STREAM_ID + 1
        while number in self._books.streams:
            number = number % LARGEST_STREAM_ID + 1
        return number


def _flat(piece: Buffer) -> Buffer:
    return piece if isinstance(piece, bytes | bytearray) else piece.cast("B") if piece.format != "B" else piece
