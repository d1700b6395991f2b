"""A programmable relay node: the server's side of the protocol over `wire.Connection`, without an engine.

It answers every request of the protocol from values that a test sets (`RelayScript`), keeps sessions, jobs and buffers
over a cut, and has faults to order: cut after so many frames, refuse, fall silent, forget, say goodbye. What it heard
is in `heard`. It uses nothing of `transport`, so both sides are held to the protocol and not to each other.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from tests.fakes.relay_session import Answerer, Piece, Refusal, RelayScript, RelaySessionState
from transport.places import Place
from wire.connection import Connection, FrameReceived
from wire.errors import IllegalSend, QueueFull, RemoteError
from wire.frames import Buffer, FrameType
from wire.handshake import Accepted, Challenge, ServerHandshake, ServerTerms
from wire.messages import decode_message, encode_message
from wire.messages_session import Error, ErrorCode, Goodbye, GoodbyeReason
from wire.state import Role

__all__ = ["FakeRelayNode", "Piece", "Refusal", "RelayScript", "fake_relay_node"]


@dataclass
class RelayNodeSettings:
    token: str | None = None
    name: str = "fake node"
    grace_seconds: int = 30
    idle_seconds: int = 300
    tls: ssl.SSLContext | None = None
    script: RelayScript = field(default_factory=RelayScript)


@asynccontextmanager
async def fake_relay_node(**settings: Any) -> AsyncIterator[FakeRelayNode]:
    """`settings` are those of `RelayNodeSettings`, or fields of its script."""
    own = {name: settings.pop(name) for name in list(settings) if name in RelayNodeSettings.__dataclass_fields__}
    node = FakeRelayNode(RelayNodeSettings(**{"script": RelayScript(**settings), **own}))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


class FakeRelayNode:
    """What is counted: `accepted` connections so far. `links` are the live ones, after their handshake."""

    def __init__(self, settings: RelayNodeSettings) -> None:
        self.settings, self.script = settings, settings.script
        self.heard: list[Any] = []  # messages, and the frames of WRITE
        self.cancelled: list[FrameType] = []
        self.goodbyes: list[Goodbye] = []
        self.sessions: dict[bytes, RelaySessionState] = {}
        self.links: list[RelayPeer] = []
        self.accepted = 0
        self.refuse_handshakes: list[Error] = []
        self.mute = False  # hears nothing and says nothing, but keeps its connections
        self.port = 0
        self.node_id, self.incarnation = bytes(range(16)), 7
        self._peers: set[RelayPeer] = set()
        self._cut_after: int | None = None
        self._cut_every_time = False
        self._server: asyncio.Server | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @property
    def place(self) -> Place:
        return Place("127.0.0.1", self.port)

    async def start(self) -> None:
        """Again on the same port after `stop`."""
        loop = asyncio.get_running_loop()
        make: Callable[[], asyncio.BaseProtocol] = lambda: RelayPeer(self)  # noqa: E731
        self._server = await loop.create_server(make, "127.0.0.1", self.port, ssl=self.settings.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        peers = list(self._peers)
        for peer in peers:
            peer.cut()
        for peer in peers:
            await peer.gone.wait()

    def cut(self) -> None:
        """All connections, without a word."""
        for peer in list(self._peers):
            peer.cut()

    def cut_after(self, frames: int, every_time: bool = False) -> None:
        """Instead of the next frame after so many more that belong to streams; once, or again and again."""
        self._cut_after, self._cut_every_time = frames, every_time

    def forget(self) -> None:
        """As after a restart, or when the grace ran out: sessions, jobs and buffers are gone."""
        self.sessions.clear()

    def goodbye(self, reason: GoodbyeReason = GoodbyeReason.STOPPING, text: str = "") -> None:
        for peer in self.links:
            peer.say_goodbye(reason, text)

    async def heard_of(self, kind: type[Any], times: int = 1) -> list[Any]:
        """Waits until so many messages of this type have come."""
        await self.until(lambda: len(self.asked(kind)) >= times)
        return self.asked(kind)

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for what `true` says of this node; it is looked at after everything that arrives or ends."""
        if not true():
            waiter = (true, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            await waiter[1]

    def asked(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    def may_send(self) -> bool:
        """Counts down to the cut that was ordered."""
        if self._cut_after is None:
            return True
        self._cut_after -= 1
        if self._cut_after >= 0:
            return True
        self._cut_after = 0 if self._cut_every_time else None
        return False

    def session_for(self, key: bytes) -> tuple[RelaySessionState, bool]:
        if key in self.sessions:
            return self.sessions[key], True
        new = RelaySessionState(os.urandom(32))
        self.sessions[new.key] = new
        return new, False

    def news(self) -> None:
        for waiter in list(self._waiters):
            true, future = waiter
            if future.done() or true():
                self._waiters.remove(waiter)
                if not future.done():
                    future.set_result(None)


class RelayPeer(asyncio.Protocol):
    """One connection."""

    def __init__(self, node: FakeRelayNode) -> None:
        self.node = node
        self.connection = Connection(Role.SERVER)
        self.session: RelaySessionState | None = None
        self.gone = asyncio.Event()
        self.mute = False  # this connection alone
        self._room = asyncio.Event()
        self._answers: dict[int, Answerer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        settings = node.settings
        terms = ServerTerms(
            settings.name, settings.token, (), node.node_id, node.incarnation, settings.idle_seconds,
            settings.grace_seconds,
        )  # fmt: skip
        self._handshake = ServerHandshake(terms, os.urandom(32))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        self.node.accepted += 1
        self.node._peers.add(self)
        self.node.news()

    def connection_lost(self, error: Exception | None) -> None:
        self.node._peers.discard(self)
        if self in self.node.links:
            self.node.links.remove(self)
        for task in self._tasks:
            task.cancel()
        self.gone.set()
        self.node.news()

    def data_received(self, data: bytes) -> None:
        if self.node.mute or self.mute:
            return
        fault: RemoteError | None = None
        try:
            self.connection.receive_data(data)
        except RemoteError as error:
            fault = error
        for event in self.connection.events_received():
            if isinstance(event, FrameReceived):
                self._hear(event)
        if fault is not None:
            self._abandon(Error(ErrorCode(int(fault.code)), str(fault)))
        self._room.set()
        self.flush()

    def cut(self) -> None:
        self._transport.abort()

    def say_goodbye(self, reason: GoodbyeReason, text: str = "") -> None:
        self.connection.goodbye(*encode_message(Goodbye(reason, text)))
        self.flush()

    def flush(self) -> None:
        while pieces := self.connection.data_to_send():
            self._transport.writelines(pieces)
        self._room.set()

    async def send(self, number: int, kind: FrameType, *payload: Buffer, ends: bool = False) -> None:
        """One frame of a stream; instead of it the ordered cut may come."""
        if not self.node.may_send():
            self.cut()
            raise asyncio.CancelledError
        while True:
            try:
                self.connection.send(kind, number, *payload, ends=ends)
            except QueueFull:
                self._room.clear()
                await self._room.wait()
            else:
                return self.flush()

    def fail(self, number: int, error: Error) -> None:
        try:
            self.connection.fail(number, *encode_message(error))
        except IllegalSend:  # cancelled meanwhile, or the connection is over
            return
        self.flush()

    def release(self, event: FrameReceived) -> None:
        self.connection.release(event)
        self.flush()

    def _hear(self, event: FrameReceived) -> None:
        if event.stream_id:
            self._hear_stream(event)
        elif event.type is FrameType.HELLO:
            self._greet(event)
        elif event.type is FrameType.GOODBYE:
            message = decode_message(event.type, event.payload)
            assert isinstance(message, Goodbye)
            self._hear_goodbye(message)
        elif event.type is FrameType.ERROR:
            self._transport.close()

    def _greet(self, event: FrameReceived) -> None:
        if self.node.refuse_handshakes:
            return self._abandon(self.node.refuse_handshakes.pop(0))
        try:
            step = self._handshake.receive(event.payload)
        except RemoteError as error:
            return self._abandon(Error(ErrorCode(int(error.code)), str(error)))
        if isinstance(step, Challenge):
            return self.connection.send(FrameType.WELCOME, 0, step.payload)
        assert isinstance(step, Accepted)
        self.session, resumed = self.node.session_for(step.hello.session_key)
        self.node.heard.append(step.hello)
        for other in self.node.links:
            if other.session is self.session:
                other.say_goodbye(GoodbyeReason.REPLACED)
        self.node.links.append(self)
        self.connection.send(FrameType.WELCOME, 0, self._handshake.welcome(self.session.key, resumed), ends=True)
        self.node.news()

    def _hear_goodbye(self, message: Goodbye) -> None:
        self.node.goodbyes.append(message)
        if self.session and message.reason in (GoodbyeReason.FINISHED, GoodbyeReason.IDLE):
            self.node.sessions.pop(self.session.key, None)
        if self.connection.state.value == "leaving":
            self.say_goodbye(GoodbyeReason.FINISHED)
        self._transport.close()
        self.node.news()

    def _hear_stream(self, event: FrameReceived) -> None:
        number = event.stream_id
        if event.type is FrameType.CANCEL:
            answerer = self._answers.pop(number, None)
            if answerer is not None:
                self.node.cancelled.append(answerer.request)
                answerer.task.cancel()
            self.fail(number, Error(ErrorCode.CANCELLED))
        elif event.type is FrameType.DATA:
            if number in self._answers:
                self._answers[number].data.put_nowait(event)
            else:
                self.release(event)
        else:
            self._begin(event)
        self.node.news()

    def _begin(self, event: FrameReceived) -> None:
        assert self.session is not None
        answerer = Answerer(self, self.node.script, self.session, event)
        self.node.heard.append(answerer.message or event)
        self._answers[event.stream_id] = answerer
        self._tasks.add(answerer.task)
        answerer.task.add_done_callback(lambda task: self._ended(event.stream_id, answerer, task))

    def _ended(self, number: int, answerer: Answerer, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._answers.get(number) is answerer:
            del self._answers[number]
        if not task.cancelled() and (error := task.exception()):
            raise error
        if not self.gone.is_set():
            self.node.news()

    def _abandon(self, error: Error) -> None:
        self.connection.abandon(*encode_message(error))
        self.flush()
        self._transport.close()
