"""One connection in one event loop, either role: moves bytes, hands frames to streams, wakes who waits.

Invariants: what is sent in one turn of the loop leaves in one write; nothing is taken from the protocol while the line
still has something, so what waits is bounded by the protocol's limits and one write; `on_lost` is called exactly once,
after every waiter of every stream was woken; closing is bounded in time. Decisions are the protocol's; this only
drives it. Must not know what messages mean, but for ERROR and GOODBYE, which end things.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from transport.codec import Lz4Codec, crc32
from transport.compression import Compression
from transport.ending import Ending
from transport.errors import ConnectionLost, ProtocolBroken, TransportError
from transport.lines import Line
from transport.streams import Stream, clipped
from transport.waiting import Waiting
from wire.compression import Link
from wire.connection import Connection, CreditReceived, FrameReceived
from wire.errors import CutShort, IllegalSend, QueueFull, RemoteError
from wire.frames import Buffer, FrameType
from wire.limits import Limits
from wire.messages import decode_message, encode_message
from wire.messages_session import ERROR_TEXT_BYTES, Error, ErrorCode, Goodbye, GoodbyeReason
from wire.state import ANSWERS, ConnectionState, Role

__all__ = ["Driver"]

# What is taken from the protocol for one write: a full frame, or some ten thousand tokens.
WRITE_BYTES = 1 << 20
# Writes in one turn of the loop while the line takes all; then others get theirs.
WRITES_PER_TURN = 4

OnControl = Callable[[FrameReceived], None]
OnRequest = Callable[[Stream, FrameReceived], None]
OnLost = Callable[["TransportError | None"], None]


class Driver:
    """`on_control` gets HELLO, WELCOME, PING, PONG, ERROR and GOODBYE of stream 0 (PINGs are answered already);
    `on_request` (server) each new stream with its request, a frame that is the receiver's to release; `on_lost` the
    reason for the end, None when both sides had said GOODBYE or this side has closed. They are called in the loop, must
    not block, and may raise RemoteErrors, which end the connection as a fault of the peer.
    """

    def __init__(
        self,
        role: Role,
        *,
        on_control: OnControl,
        on_lost: OnLost,
        on_request: OnRequest | None = None,
        limits: Limits | None = None,
    ) -> None:
        codec = Lz4Codec()
        self.connection = Connection(role, limits=limits, checksum=crc32, codec=codec)
        self.compression = Compression(codec)
        self.lost: ConnectionLost | None = None
        self.last_heard = 0.0  # loop time at which anything last came
        self.get_buffer = self.connection.get_buffer  # for the line
        self._loop = asyncio.get_running_loop()
        self._on_control, self._on_request, self._on_lost = on_control, on_request, on_lost
        self._serves = role is Role.SERVER
        self._streams: dict[int, Stream] = {}
        self.waiting = Waiting(self.connection)
        self._line: Line | None = None
        self._flush_due = self._prompt = False
        self._ending = Ending(self._loop, self._run_out)

    @property
    def streams(self) -> Mapping[int, Stream]:
        """Those that are not over."""
        return MappingProxyType(self._streams)

    @property
    def sent_bytes(self) -> int:
        return self._line.sent_bytes if self._line else 0

    @property
    def received_bytes(self) -> int:
        return self._line.received_bytes if self._line else 0

    @property
    def link(self) -> Link:
        """The line's speed as measured, and the signal that the client told."""
        return self.compression.link

    @property
    def signal_dbm(self) -> int | None:
        return self.compression.signal_dbm

    @signal_dbm.setter
    def signal_dbm(self, signal_dbm: int | None) -> None:
        self.compression.signal_dbm = signal_dbm

    @property
    def may_talk(self) -> bool:
        """After the handshake, and while this side may still send frames of streams."""
        state = self.connection.state
        leaving = state is ConnectionState.LEAVING and self._serves
        return self.lost is None and (state in (ConnectionState.READY, ConnectionState.DRAINING) or leaving)

    def attach(self, line: Line) -> None:
        """Starts to read and write. The line is the driver's from now on."""
        assert self._line is None, "a driver has one line"
        self._line = self._ending.line = line
        self.last_heard = self._loop.time()
        line.start(self)
        self.flush_soon()

    def allow_compression(self) -> None:
        """Both sides named it in the handshake."""
        self.connection.allow_compression()
        self.compression.allowed = True

    async def send_control(self, kind: FrameType, payload: Buffer, ends: bool = False) -> None:
        """HELLO, WELCOME or PING. Raises ConnectionLost; IllegalSend for what the state does not allow."""
        if self.lost is not None:
            raise self.lost.again()
        self.connection.send(kind, 0, payload, ends=ends)
        self.flush_soon()

    def open_nowait(
        self, kind: FrameType, *payload: Buffer, ends: bool = False, compress: bool | None = None
    ) -> Stream:
        """As `open`. Raises QueueFull when as many streams or bytes wait as may."""
        if self.lost is not None:
            raise self.lost.again()
        if compress is None:
            compress = self.compression.pays(kind, kind, payload)
        number = self.connection.open_stream(kind, *payload, ends=ends, compress=compress)
        stream = self._streams[number] = Stream(self, number, kind)
        self.flush_soon()
        return stream

    async def open(self, kind: FrameType, *payload: Buffer, ends: bool = False, compress: bool | None = None) -> Stream:
        """The client's request, as soon as there is room for it. `payload` is kept as by `Stream.send`.

        Raises ConnectionLost, IllegalSend (the server opens no more), OutOfBounds.
        """
        while True:
            try:
                return self.open_nowait(kind, *payload, ends=ends, compress=compress)
            except QueueFull:
                await self.waiting.opening()

    async def drain(self) -> None:
        """Until all that was sent has left this process. Raises ConnectionLost."""
        await self.drained(None)

    def goodbye(self, reason: GoodbyeReason, text: str = "") -> None:
        """No more from the client, no new streams from the server; when both have said it, it ends by itself.

        Harmless where it has been said or nobody listens any more.
        """
        farewell = b"".join(encode_message(Goodbye(reason, clipped(text, ERROR_TEXT_BYTES))))
        if self.lost is None:
            try:
                self.connection.goodbye(farewell)
            except (IllegalSend, QueueFull):
                return
            self._look_at_state()
            self.flush_soon()

    def abandon(self, code: ErrorCode, text: str = "") -> None:
        """Ends the connection for a reason of our own, which the peer is told."""
        self._give_up(ConnectionLost(text or code.name, code), code, text)

    def break_off(self, error: RemoteError) -> ConnectionLost:
        """Ends the connection because the peer is at fault, which it is told; returns what to raise."""
        self._give_up(ProtocolBroken(error), ErrorCode(error.code), str(error))
        assert self.lost is not None
        return self.lost.again()

    def close(self) -> None:
        """Ends it now: what can be written without waiting still is. Streams are lost; harmless when closed."""
        self._lose(ConnectionLost("this side has closed the connection"), None)
        self._flush()
        self._shut()

    async def wait_closed(self) -> None:
        """Until the socket is closed and no timer is left."""
        await self._ending.wait_closed()

    # What follows is for the streams.

    def flush_soon(self) -> None:
        """Writes what there is after everything that runs in this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def give_back(self, frame: FrameReceived, cost: int) -> None:
        """`cost` bytes of credit, of this frame and of others of its stream."""
        if cost != frame.cost:
            kind, number = frame.type, frame.stream_id
            frame = FrameReceived(kind, number, frame.payload, frame.ends, cost, stream=frame.stream)
        self.connection.release(frame)
        if self.connection.wants_to_send:
            self.flush_soon()

    async def drained(self, number: int | None) -> None:
        """Until the stream's frames, or all, are written."""
        if self.lost is not None:
            raise self.lost.again()
        self.flush_soon()
        await self.waiting.drained(number)
        if self.lost is not None:
            raise self.lost.again()

    def forget(self, stream: Stream) -> None:
        if self._streams.get(stream.number) is stream:
            del self._streams[stream.number]
        self.waiting.wake_openers()

    # What follows is for the line.

    def buffer_updated(self, count: int) -> int:
        connection = self.connection
        try:
            connection.buffer_updated(count)
        except RemoteError as error:
            self._deliver()
            self.break_off(error)
            return 1
        return self._deliver()

    def turn_over(self) -> None:
        self.last_heard = self._loop.time()
        if self._prompt:
            self._prompt = False
            self._flush()
        elif self.connection.wants_to_send:
            self.flush_soon()

    def line_ready(self) -> None:
        self._flush()

    def line_measured(self, size: int, seconds: float) -> None:
        self.compression.measured(size, seconds)

    def line_ended(self) -> None:
        """The peer's end. Without a GOODBYE before it, it is a cut."""
        self._ending.peer_ended()
        if self.lost is not None:
            return
        try:
            self.connection.receive_end()
        except CutShort as error:  # a line breaks at any byte: that is no fault of the peer's, but it is told so
            self._give_up(ConnectionLost(str(error)), ErrorCode(error.code), str(error))
            return
        if self.connection.state is not ConnectionState.LEAVING:
            self._lose_to(ConnectionLost("the peer has closed the connection"))
        elif self._serves:
            self._ending.limit()  # our last words are still to come, and a client may hear them
        else:
            self._lose(ConnectionLost("the peer has closed the connection"), None)
            self._shut()

    def line_lost(self, error: OSError | None) -> None:
        reason = (error.strerror or str(error)) if error is not None else "the peer has closed the connection"
        self._lose_to(ConnectionLost(reason.lower()))

    def _deliver(self) -> int:
        """Hands out what has arrived; returns how many events there were."""
        events = self.connection.events_received()
        streams, may_be_over = self._streams, False
        for event in events:
            if event.__class__ is CreditReceived:
                self.flush_soon()  # for room that may have come of it, too
                continue
            assert isinstance(event, FrameReceived)
            number = event.stream_id
            if number == 0:
                may_be_over = True  # such a frame may end the connection
                self._take_control(event)
            elif self._serves and event.type in ANSWERS:
                self._begin(event)
            elif (stream := streams.get(number)) is not None:
                stream.arrive(event)
            else:
                self.connection.release(event)  # of a stream that a callback has ended a moment ago
        if may_be_over:
            self._look_at_state()
        return len(events)

    def _take_control(self, frame: FrameReceived) -> None:
        try:
            self._on_control(frame)
            if frame.type is FrameType.ERROR:
                error = decode_message(FrameType.ERROR, frame.payload)
                assert isinstance(error, Error)
                reason = ConnectionLost(error.text or error.code.name, error.code)
                self._lose(reason, reason)
        except RemoteError as fault:
            self.break_off(fault)
        self._prompt = self._prompt or frame.type is FrameType.PING

    def _begin(self, frame: FrameReceived) -> None:
        if self.lost is not None:
            return
        stream = self._streams[frame.stream_id] = Stream(self, frame.stream_id, frame.type)
        if frame.ends:
            stream.hear_end()
        assert self._on_request is not None, "a server takes requests"
        try:
            self._on_request(stream, frame)
        except RemoteError as fault:
            self.break_off(fault)

    def _flush(self) -> None:
        self._flush_due = False
        line = self._line
        if line is None or self._ending.is_closed or self._ending.is_ending:
            return
        waiting, full = self.waiting, line.is_full
        if not full:
            if waiting.drains:
                waiting.at_written()
            full = not self._write_to(line)
        if waiting.rooms or waiting.openers:
            waiting.at_room()
        if not full:
            if waiting.drains:
                waiting.at_written()
            if self.lost is not None and not self.connection.wants_to_send:
                self._ending.all_written()

    def _write_to(self, line: Line) -> bool:
        """Whether the line has taken all that it was given."""
        connection = self.connection
        for _ in range(WRITES_PER_TURN):
            buffers = connection.data_to_send(WRITE_BYTES)
            if buffers and not line.write(buffers):
                return not line.is_full
            if not buffers or not connection.wants_to_send:
                return True
        self.flush_soon()
        return True

    def _look_at_state(self) -> None:
        if self.lost is None and self.connection.state is ConnectionState.CLOSED:
            self._lose(ConnectionLost("both sides have said goodbye"), None)

    def _give_up(self, reason: ConnectionLost, code: ErrorCode, text: str) -> None:
        if self.lost is not None:
            return
        with contextlib.suppress(IllegalSend, QueueFull):  # nobody would read it
            self.connection.abandon(b"".join(encode_message(Error(code, clipped(text, ERROR_TEXT_BYTES)))))
        self._lose(reason, reason)

    def _lose_to(self, reason: ConnectionLost) -> None:
        self._lose(reason, reason)
        self._shut()

    def _lose(self, reason: ConnectionLost, told: ConnectionLost | None) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self.connection.forget_rooms()
        for stream in list(self._streams.values()):
            stream.lose(reason.again())
        self.waiting.wake_all()
        self._ending.limit()
        self.flush_soon()
        self._on_lost(told)

    def _shut(self) -> None:
        self._ending.shut()
        self.connection.forget_frames()

    def _run_out(self) -> None:
        self._lose(ConnectionLost("the connection did not end in time"), None)
        self.connection.forget_frames()
