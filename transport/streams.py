"""One stream as the tasks of either side see it: frames to wait for, room to wait for, an end.

Invariants: frames come in order, and those that came before an end are received before it is told; every frame is
released once, by who received it or, when nobody will, here; waiting is undone by every end, each waiter once. One
task receives at a time, any number send. Must not know sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from transport.compression import Compression
from transport.errors import Cancelled, ConnectionLost, Refused, StreamEnded, TransportError
from transport.waiting import Waiting
from wire.compression import SMALLEST_BYTES
from wire.connection import Connection, FrameReceived
from wire.errors import IllegalSend, QueueFull, RemoteError, TooLarge
from wire.frames import Buffer, FrameType
from wire.messages import Message, decode_message, encode_message, frame_type
from wire.messages_session import ERROR_TEXT_BYTES, Error, ErrorCode
from wire.scalars import Table
from wire.state import Role

__all__ = ["Carrier", "Stream"]

# Small frames are given back together: credit is granted by the half window, so a call for each would be for nothing.
# All streams together keep less than half of the smallest window this way, so no sender waits for it.
RELEASE_BYTES = 1024


class Carrier(Protocol):
    """What a stream needs of the driver that carries it."""

    connection: Connection
    compression: Compression
    waiting: Waiting
    lost: ConnectionLost | None

    @property
    def may_talk(self) -> bool: ...

    def flush_soon(self) -> None: ...

    def give_back(self, frame: FrameReceived, cost: int) -> None: ...

    def forget(self, stream: Stream) -> None: ...

    def break_off(self, error: RemoteError) -> ConnectionLost: ...

    async def drained(self, number: int | None) -> None: ...


class Stream:
    """Made by a `Driver`: by `open` for the client, for `on_request` on the server.

    `on_cancel` (server) is called at once when the client cancels or the connection is lost, at most once, and not
    when the stream is over.
    """

    __slots__ = (
        "_driver", "_final", "_frames", "_mute", "_over", "_over_waiters", "_owed", "_owed_cost", "_waiter",
        "number", "on_cancel", "request",
    )  # fmt: skip

    def __init__(self, driver: Carrier, number: int, request: FrameType) -> None:
        self.number, self.request = number, request
        self.on_cancel: Callable[[], None] | None = None
        self._driver = driver
        self._frames: deque[FrameReceived] = deque()
        self._final: TransportError | None = None  # told when the frames before it are received
        self._mute = self._over = False  # mute: not every frame may be sent any more
        self._waiter: asyncio.Future[None] | None = None
        self._over_waiters: list[asyncio.Future[None]] = []
        self._owed: FrameReceived | None = None
        self._owed_cost = 0

    @property
    def over(self) -> bool:
        """Nothing is sent or will arrive any more; what has arrived can still be received."""
        return self._over

    @property
    def cancelled(self) -> bool:
        """Server: the client wants no more, and the end of this side is still due."""
        return not self._over and isinstance(self._final, Cancelled)

    async def receive(self) -> FrameReceived:
        """The next frame; give it to `release` when done with it.

        Raises when no frame will come any more, also when asked again: StreamEnded, Refused, Cancelled, ConnectionLost.
        A server whose client has said all gets StreamEnded at once; of a CANCEL then `on_cancel` tells.
        """
        while not self._frames:
            if self._final is not None:
                raise self._told()
            await self._arrival()
        return self._frames.popleft()

    def receive_nowait(self) -> FrameReceived | None:
        """The next frame if it is here. Raises as `receive`."""
        if self._frames:
            return self._frames.popleft()
        if self._final is not None:
            raise self._told()
        return None

    def release(self, frame: FrameReceived) -> None:
        """The frame's payload needs no room any more, so the peer may send as much anew. Once per frame."""
        if not frame.cost or frame.placed:
            return
        owed = self._owed_cost + frame.cost
        if owed < RELEASE_BYTES and self._final is None:
            self._owed, self._owed_cost = frame, owed
            return
        self._owed, self._owed_cost = None, 0
        self._driver.give_back(frame, owed)

    async def message(self) -> Message:
        """The next frame as its message, released. Blobs are views of the frame's payload.

        Raises as `receive`. What no message can be is the peer's fault: the connection ends with ProtocolBroken.
        """
        while not self._frames:
            if self._final is not None:
                raise self._told()
            await self._arrival()
        return self._decoded(self._frames.popleft())

    async def messages(self) -> list[Message]:
        """As `message`, with all that has arrived meanwhile: at least one, which is quicker than one by one."""
        while not self._frames:
            if self._final is not None:
                raise self._told()
            await self._arrival()
        frames, self._frames = self._frames, deque()
        return [self._decoded(frame) for frame in frames]

    def _decoded(self, frame: FrameReceived) -> Message:
        try:
            message = decode_message(frame.type, frame.payload)
        except RemoteError as error:
            raise self._driver.break_off(error) from error
        self.release(frame)
        return message

    async def send(self, kind: FrameType, *payload: Buffer, ends: bool = False, compress: bool | None = None) -> None:
        """One more frame, as soon as there is room for it. `compress` None: if measurements say that it pays.

        `payload` is kept, not copied: leave it unchanged until it is sent (`drain`). Raises what `receive` would when
        the stream cannot be sent on any more, IllegalSend and OutOfBounds for misuse. After a CANCEL only a frame with
        `ends` is taken.
        """
        if self.number not in self._driver.waiting.rooms:  # or who comes later would be first
            try:
                return self.send_nowait(kind, *payload, ends=ends, compress=compress)
            except QueueFull:
                pass
        size = sum(map(len, payload))
        while True:
            await self._driver.waiting.room(self.number, size)
            try:
                return self.send_nowait(kind, *payload, ends=ends, compress=compress)
            except QueueFull:
                continue  # another stream was faster

    def send_nowait(self, kind: FrameType, *payload: Buffer, ends: bool = False, compress: bool | None = None) -> None:
        """As `send`. Raises QueueFull when there is no room now."""
        driver = self._driver
        if self._mute:
            self._check_sending(ends)
        elif len(payload) == 1 and not ends and not compress and type(payload[0]) is bytes:
            small = len(payload[0]) < SMALLEST_BYTES
            if small and driver.connection.answer(kind, self.number, payload[0]):
                return driver.flush_soon()
        if compress is None:
            compress = driver.compression.allowed and driver.compression.pays(self.request, kind, payload)
        driver.connection.send(kind, self.number, *payload, ends=ends, compress=compress)
        driver.flush_soon()
        if ends and driver.connection.role is Role.SERVER:
            self._end_here()

    async def send_message(self, message: Message, ends: bool = False) -> None:
        """As `send`; raises OutOfBounds for what the other side would refuse."""
        await self.send(frame_type(message), *encode_message(message), ends=ends)

    async def drain(self) -> None:
        """Until all that was sent on this stream has left this process, so its buffers may be used anew.

        Raises ConnectionLost. A stream whose peer gives no credit drains only when that has changed.
        """
        await self._driver.drained(self.number)

    def receive_into(self, room: memoryview) -> None:
        """DATA of this stream goes into `room`, then into the rooms named after it; see `Connection.receive_into`.

        DATA that was here before the call is not placed and comes by itself: frames with `placed` lie in the rooms.
        """
        if not self._over:
            self._driver.connection.receive_into(self.number, room)
            self._driver.flush_soon()

    def widen(self) -> None:
        """Lets the peer have a bulk stream's window under way."""
        if not self._over:
            self._driver.connection.widen(self.number)
            self._driver.flush_soon()

    def cancel(self) -> None:
        """The client wants no more: what has arrived is released, and what may still come is the last frame only.

        That is the server's last answer, or Refused with CANCELLED; `wait_over` tells when it has come. To be called by
        every client that stops receiving before the end; harmless when the stream is over.
        """
        self._discard()
        if self._mute or not self._driver.may_talk:
            return  # cancelled or ended already
        self._mute = True
        try:
            heard = self._driver.connection.cancel(self.number)
        except QueueFull:
            self._driver.break_off(TooLarge("the peer makes us talk and never reads"))
            return
        if not heard:
            self._end(StreamEnded("cancelled before it was sent"))
            self._close()
        self._driver.waiting.wake_sender(self.number)
        self._driver.flush_soon()

    def fail(self, code: ErrorCode, text: str = "", *, retry_after_ms: int | None = None, details: Table = ()) -> None:
        """The server ends the stream with an ERROR; what of it waits to be sent is dropped. Harmless when over.

        A text that is too long for the message is cut off.
        """
        if self._over:
            return
        error = Error(code, clipped(text, ERROR_TEXT_BYTES), retry_after_ms, details)
        try:
            self._driver.connection.fail(self.number, b"".join(encode_message(error)))
        except QueueFull:
            self._driver.break_off(TooLarge("the peer makes us answer and never reads"))
            return
        self._driver.flush_soon()
        self._end_here()

    def break_off(self, error: RemoteError) -> ConnectionLost:
        """The peer sent what no client or server may: ends the connection, and returns what to raise."""
        return self._driver.break_off(error)

    async def wait_over(self) -> None:
        """Until `over`. Raises nothing: also a lost connection ends the stream."""
        if not self._over:
            waiter = asyncio.get_running_loop().create_future()
            self._over_waiters.append(waiter)
            await waiter

    # What follows is for the driver.

    def arrive(self, frame: FrameReceived) -> None:
        """A frame of the peer, in order."""
        kind = frame.type
        if kind is FrameType.CANCEL:
            self._discard()
            self._end(Cancelled("the client wants no more"))
            self._call_off()
            return
        if kind is FrameType.ERROR:
            self._end(self._refusal(frame))
            self._close()
            return
        self._frames.append(frame)
        if frame.ends:
            self.hear_end()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hear_end(self) -> None:
        """The peer's half has ended; the server's ends the stream."""
        self._end(StreamEnded("the other side has said all"))
        if self._driver.connection.role is Role.CLIENT:
            self._close()

    def lose(self, reason: ConnectionLost) -> None:
        """The connection is over."""
        if self._over:
            return
        self._end(reason)
        self._close()
        self._call_off()

    def _refusal(self, frame: FrameReceived) -> TransportError:
        try:
            error = decode_message(FrameType.ERROR, frame.payload)
        except RemoteError as fault:
            return self._driver.break_off(fault)
        assert isinstance(error, Error)
        return Refused.by(error)

    def _check_sending(self, ends: bool) -> None:
        if self._driver.lost is not None:
            raise self._driver.lost.again()
        if self._driver.connection.role is Role.CLIENT:
            raise Cancelled("this side has cancelled the stream") if self._final is None else self._told()
        if self._over:
            raise IllegalSend(f"stream {self.number} has its last answer")
        if not ends:
            raise self._told()

    def _told(self) -> TransportError:
        """A new one each time: an exception that several raise mixes up their tracebacks."""
        final = self._final
        assert final is not None
        if isinstance(final, ConnectionLost):
            return final.again()
        if isinstance(final, Refused):
            return Refused(final.code, final.text, final.retry_after_ms, tuple(final.details.items()))
        return type(final)(*final.args)

    async def _arrival(self) -> None:
        assert self._waiter is None, "two tasks receive on one stream"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _end(self, final: TransportError) -> None:
        """No frame will come behind those that are here; the first end counts, but a loss tops a mere END."""
        called_off = isinstance(final, ConnectionLost | Cancelled)
        if self._final is None or (called_off and not self._over):
            self._final = final
        self._mute = self._mute or called_off or self._driver.connection.role is Role.CLIENT
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._settle()
        self._driver.waiting.wake_sender(self.number)

    def _end_here(self) -> None:
        """The server has said its last: what the client may still say is of no interest."""
        self._discard()
        self._end(StreamEnded("this side has said all"))
        self._close()

    def _close(self) -> None:
        if self._over:
            return
        self._over = self._mute = True
        self._driver.forget(self)
        waiters, self._over_waiters = self._over_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _call_off(self) -> None:
        told, self.on_cancel = self.on_cancel, None
        if told is not None:
            told()

    def _discard(self) -> None:
        """Gives back what nobody will receive."""
        while self._frames:
            self.release(self._frames.popleft())
        self._settle()

    def _settle(self) -> None:
        if self._owed is not None:
            frame, cost, self._owed, self._owed_cost = self._owed, self._owed_cost, None, 0
            self._driver.give_back(frame, cost)


def clipped(text: str, most_bytes: int) -> str:
    """`text`, cut off where its UTF-8 would be too long."""
    return text if len(text) * 4 <= most_bytes else text.encode()[:most_bytes].decode(errors="ignore")
