"""The client's end of one connection, from the socket through the handshake to the last goodbye.

Invariants: what `connect` returns has proved the token where there is one; whatever fails before that leaves no socket
behind; a link is lost once, tells its owner at once, and is never mended (`session.py` makes a new one). A node that
stops lets the running streams end; the last of them ends the link. Knows no sessions beyond the welcome's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from transport.codec import LZ4
from transport.driver import Driver
from transport.errors import ConnectFailed, ConnectionLost, Refused, StreamEnded, TransportError, WrongToken
from transport.places import Access, Place, reach
from transport.streams import Stream
from transport.tls import Tls, line_over
from wire.connection import FrameReceived
from wire.errors import BadPayload, RemoteError, WrongProof
from wire.frames import FrameType
from wire.handshake import ClientHandshake, ClientTerms
from wire.messages import Message, decode_message, encode_message, frame_type
from wire.messages_session import Error, ErrorCode, Goodbye, GoodbyeReason, Ping, Pong, Welcome
from wire.messages_work import Progress, Vectors
from wire.state import Role

__all__ = ["Access", "Caller", "Link", "Place", "connect"]

CONNECT_SECONDS = 5.0
# The node answers a goodbye at once; a dead one never.
GOODBYE_SECONDS = 1.0
NONCE_BYTES = 32
# After these the node keeps nothing of the session, so there is nothing to come back to.
FREEING = frozenset({GoodbyeReason.FINISHED, GoodbyeReason.IDLE, GoodbyeReason.UNWELCOME})


@dataclass(frozen=True, slots=True)
class Caller:
    """What a client says of itself in its HELLO."""

    name: str = ""
    session_key: bytes = b""
    signal_dbm: int | None = None


async def connect(
    place: Place,
    access: Access,
    caller: Caller | None = None,
    *,
    timeout_seconds: float = CONNECT_SECONDS,
    on_lost: Callable[[Link], None] | None = None,
) -> Link:
    """A link that is ready for requests.

    Raises ConnectFailed (nobody there, or no relay node), WrongToken, Refused (BUSY: the node has no room for us), and
    OutOfBounds for a name that no HELLO can carry. `on_lost` is called once, from the loop, when the link ends.
    """
    caller = caller or Caller()
    terms = ClientTerms(caller.name, access.token, (LZ4,), caller.session_key, caller.signal_dbm)
    link = Link(place, ClientHandshake(terms, os.urandom(NONCE_BYTES)), on_lost)
    try:
        async with asyncio.timeout(timeout_seconds):
            await link.begin(access)
    except TimeoutError as error:
        raise ConnectFailed(str(place), f"no answer within {timeout_seconds:g} s") from error
    finally:
        if not link.is_ready:
            await link.abandon()
    if link.goodbye is not None and link.goodbye.reason is GoodbyeReason.UNWELCOME:
        await link.close()
        raise Refused(ErrorCode.BUSY, link.goodbye.text)
    return link


class Link:
    """Made by `connect`. Any number of tasks may use it at once."""

    def __init__(self, place: Place, handshake: ClientHandshake, on_lost: Callable[[Link], None] | None = None) -> None:
        self.place = place
        self.goodbye: Goodbye | None = None  # the node's
        self._handshake, self._on_lost = handshake, on_lost
        self._driver = Driver(Role.CLIENT, on_control=self._hear, on_request=None, on_lost=self._end)
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._lost: TransportError | None = None
        self._attached = False
        self._leaving: asyncio.Task[None] | None = None

    @property
    def welcome(self) -> Welcome:
        assert self._handshake.welcome is not None, "a link is handed out after its handshake"
        return self._handshake.welcome

    @property
    def is_ready(self) -> bool:
        return self._handshake.welcome is not None and self._lost is None

    @property
    def lost(self) -> TransportError | None:
        """Why there is no connection any more; None while there is."""
        return self._lost

    @property
    def draining(self) -> bool:
        """The node has said goodbye: it opens no new streams."""
        return self.goodbye is not None

    @property
    def is_over(self) -> bool:
        """Nothing can be asked here any more, though a new connection may be made at once."""
        return self._lost is not None or (
            self.goodbye is not None and self.goodbye.reason is not GoodbyeReason.STOPPING
        )

    @property
    def keeps_session(self) -> bool:
        """Whether the node still has the session when this link is over."""
        return self.goodbye is None or self.goodbye.reason not in FREEING

    @property
    def driver(self) -> Driver:
        """For counters and measurements of the line."""
        return self._driver

    async def begin(self, access: Access) -> None:
        """Socket, TLS, handshake. Only for `connect`."""
        socket = await reach(self.place)
        tls = Tls(access.tls, server_name=access.server_name or self.place.host) if access.tls else None
        line = await line_over(socket, tls)
        self._driver.attach(line)
        self._attached = True
        await self._driver.send_control(FrameType.HELLO, self._handshake.begin())
        await self._greeted

    async def abandon(self) -> None:
        """Closes without a word, whatever has come so far."""
        self._greeted.cancel()
        if self._attached:
            self._driver.close()
            await self.wait_closed()

    async def open(self, message: Message, *, ends: bool = True) -> Stream:
        """A request; `ends=False` when DATA follows. Raises ConnectionLost, Refused (STOPPING) while draining."""
        return await self.open_raw(frame_type(message), *encode_message(message), ends=ends)

    async def open_raw(self, kind: FrameType, *payload: bytes | bytearray | memoryview, ends: bool = True) -> Stream:
        """The same for a payload that is no message: WRITE's tensor header."""
        if self._lost is not None:
            raise _again(self._lost)
        if self.goodbye is not None:
            raise Refused(ErrorCode.STOPPING, self.goodbye.text or "the node takes no more requests")
        return await self._driver.open(kind, *payload, ends=ends)

    async def ask(self, message: Message, on_progress: Callable[[Progress], None] | None = None) -> Message:
        """One request, one answer; several VECTORS become one. Raises Refused, ConnectionLost."""
        stream = await self.open(message)
        vectors: list[Vectors] = []
        try:
            while True:
                answer = await stream.message()
                if isinstance(answer, Progress):
                    if on_progress is not None:
                        on_progress(answer)
                elif not isinstance(answer, Vectors):
                    return answer
                elif _are_all(vectors, answer):
                    return _joined(vectors)
        except RemoteError as error:
            raise stream.break_off(error) from error
        except StreamEnded as error:
            raise stream.break_off(BadPayload("the stream ended before its answer")) from error
        finally:
            stream.cancel()

    async def ping(self, signal_dbm: int | None = None) -> float:
        """Seconds there and back. Tells the node the strength of the Wi-Fi signal, where that is known."""
        echo = next(self._numbers).to_bytes(8, "big")
        heard = self._pings[echo] = asyncio.get_running_loop().create_future()
        if signal_dbm is not None:
            self._driver.signal_dbm = signal_dbm
        started = time.perf_counter()  # uvloop's own clock counts whole milliseconds
        try:
            await self._send_ping(Ping(echo, signal_dbm))
            await heard
        finally:
            self._pings.pop(echo, None)
        return time.perf_counter() - started

    async def poke(self, signal_dbm: int | None = None) -> None:
        """A ping whose answer nobody waits for: it counts as something heard."""
        await self._send_ping(Ping(signal_dbm=signal_dbm))

    async def close(self, reason: GoodbyeReason = GoodbyeReason.FINISHED) -> None:
        """Says goodbye, waits a moment for the node's, and closes. FINISHED frees everything of the session."""
        try:
            if self._lost is None:
                await self._part(reason)
        finally:
            self._driver.close()
        await self.wait_closed()

    async def _part(self, reason: GoodbyeReason) -> None:
        with contextlib.suppress(TransportError):
            self._driver.goodbye(reason)
            # Not asyncio.timeout: in a task that was cancelled it tells no end of time in Python 3.11.2.
            answered = asyncio.ensure_future(self._ended.wait())
            try:
                await asyncio.wait({answered}, timeout=GOODBYE_SECONDS)
            finally:
                answered.cancel()

    def cut(self, reason: str) -> None:
        """Ends the connection without a word: the node keeps the session for its grace."""
        self._end(ConnectionLost(reason))
        self._driver.close()

    async def wait_closed(self) -> None:
        """Until the socket is closed."""
        await self._driver.wait_closed()
        if self._leaving is not None:
            await asyncio.wait({self._leaving})

    async def _send_ping(self, ping: Ping) -> None:
        if self._lost is not None:
            raise _again(self._lost)
        await self._driver.send_control(FrameType.PING, b"".join(encode_message(ping)))

    def _hear(self, frame: FrameReceived) -> None:
        """A frame of stream 0."""
        if frame.type is FrameType.WELCOME:
            self._greet(frame)
            return
        message = decode_message(frame.type, frame.payload)
        if isinstance(message, Pong):
            waiting = self._pings.get(message.echo)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif isinstance(message, Goodbye):
            self._hear_goodbye(message)
        elif isinstance(message, Error):
            self._hear_error(message)

    def _greet(self, frame: FrameReceived) -> None:
        try:
            answer = self._handshake.receive(frame.payload, frame.ends)
        except WrongProof as error:
            self._fail_greeting(WrongToken(f"{self.place}: {error}"))
            raise
        except RemoteError as error:
            self._fail_greeting(ConnectFailed(str(self.place), f"no relay node of ours: {error}"))
            raise
        if answer is not None:
            self._driver.connection.send(FrameType.HELLO, 0, answer)
            self._driver.flush_soon()
            return
        if LZ4 in self.welcome.capabilities:
            self._driver.allow_compression()
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _hear_error(self, error: Error) -> None:
        """The node gives up the connection; before the welcome that is its answer to us."""
        if error.code is ErrorCode.WRONG_PROOF:
            self._fail_greeting(WrongToken(f"{self.place}: {error.text or 'another token is wanted'}"))
        elif error.code >= ErrorCode.INTERNAL:
            self._fail_greeting(Refused.by(error))
        else:
            self._fail_greeting(ConnectFailed(str(self.place), f"{error.code.name}: {error.text}"))

    def _hear_goodbye(self, goodbye: Goodbye) -> None:
        """A node that stops lets what runs come to its end; otherwise there is nothing left to wait for."""
        if self.goodbye is not None or self._lost is not None:
            return
        self.goodbye = goodbye
        if goodbye.reason is GoodbyeReason.STOPPING:
            self._leaving = asyncio.get_running_loop().create_task(self._leave(), name=f"leave {self.place}")
        else:
            self._driver.goodbye(goodbye.reason)

    async def _leave(self) -> None:
        while streams := list(self._driver.streams.values()):
            await streams[0].wait_over()
        self._driver.goodbye(GoodbyeReason.STOPPING)

    def _fail_greeting(self, error: TransportError) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(error)

    def _end(self, error: TransportError | None) -> None:
        """The connection is over; the first reason counts."""
        if self._lost is not None:
            return
        self._lost = error or ConnectionLost(self._closing_words())
        self._fail_greeting(ConnectFailed(str(self.place), str(self._lost)))
        for waiting in self._pings.values():
            if not waiting.done():
                waiting.set_exception(_again(self._lost))
        self._ended.set()
        if self._handshake.welcome is not None and self._on_lost is not None:
            self._on_lost(self)

    def _closing_words(self) -> str:
        if self.goodbye is None:
            return "the connection was closed"
        return f"the node said goodbye: {self.goodbye.text or self.goodbye.reason.name.lower()}"


def _again(error: TransportError) -> TransportError:
    """An exception that several raise mixes up their tracebacks."""
    return error.again() if isinstance(error, ConnectionLost) else error


def _are_all(vectors: list[Vectors], more: Vectors) -> bool:
    """Takes `more`, and says whether that was the last. Raises BadPayload for a gap."""
    expected = sum(map(_rows, vectors))
    if more.first != expected or (vectors and more.dimensions != vectors[0].dimensions):
        raise BadPayload(f"vectors from {more.first} on where {expected} is next")
    vectors.append(more)
    return expected + _rows(more) >= more.total


def _rows(vectors: Vectors) -> int:
    return memoryview(vectors.data).nbytes // (4 * vectors.dimensions)


def _joined(parts: list[Vectors]) -> Vectors:
    first = parts[0]
    data = first.data if len(parts) == 1 else b"".join(part.data for part in parts)
    return Vectors(0, first.total, first.dimensions, data, max(part.prompt_tokens for part in parts))
