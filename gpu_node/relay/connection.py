"""One client's connection: greeted in time, then a session's, until one side ends it.

Invariants: before the handshake is over nothing of the client is kept but its bytes of it; a connection that is over
has left every list; what happens to the session is the sessions' matter. Must not know what requests mean.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from gpu_node.errors import NodeError
from gpu_node.relay.counters import RelayCounters
from gpu_node.relay.errors import Failure, failure_of
from gpu_node.relay.requests import Requests
from gpu_node.relay.sessions import ClientSession, Sessions
from transport.codec import LZ4
from transport.driver import Driver
from transport.errors import ProtocolBroken, TransportError
from transport.lines import Line
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.frames import FrameType
from wire.handshake import Accepted, Challenge, ServerHandshake, ServerTerms
from wire.limits import Limits
from wire.messages import decode_message
from wire.messages_session import NONCE_BYTES, SESSION_KEY_BYTES, ErrorCode, Goodbye, GoodbyeReason, Ping
from wire.state import Role

log = logging.getLogger("gpu_node.relay")

# After these nothing of the session is kept; after the others the client may come back.
FREEING = frozenset({GoodbyeReason.FINISHED, GoodbyeReason.IDLE, GoodbyeReason.UNWELCOME})
# Whatever a client sends is read at once, so its streams need nothing beyond the connection's window: the less there is
# to hold for one that sends what nobody asked for.
LIMITS = Limits(stream_share=0)
STOPPING = Failure(ErrorCode.STOPPING, "the node is shutting down")
OVER = Failure(ErrorCode.SESSION_GONE, "this session is over: connect anew")


@dataclass(frozen=True, slots=True)
class Reception:
    """What every connection of a server is given."""

    terms: ServerTerms
    sessions: Sessions
    requests: Requests
    counters: RelayCounters
    greeting_seconds: float = 10.0  # for the whole handshake, however slowly its bytes come
    farewell_seconds: float = 2.0  # for the client's own goodbye, after ours


class ClientConnection:
    def __init__(self, reception: Reception, peer: str, on_over: Callable[[ClientConnection], None]) -> None:
        """`on_over` is called once, when the socket is closed or about to be."""
        self.peer = peer
        self.session: ClientSession | None = None
        self.driver = Driver(
            Role.SERVER, on_control=self._control, on_lost=self._lost, on_request=self._request, limits=LIMITS
        )
        self._reception, self._on_over = reception, on_over
        self._handshake = ServerHandshake(reception.terms, secrets.token_bytes(NONCE_BYTES))
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False

    @property
    def greeted(self) -> bool:
        return self.session is not None

    @property
    def heard_at(self) -> float:
        return self.driver.last_heard

    def begin(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._reception.greeting_seconds, self._too_slow)
        self.driver.attach(line)

    def leave(self, reason: GoodbyeReason) -> None:
        """The session needs this connection no more."""
        self.driver.goodbye(reason)
        if reason is GoodbyeReason.REPLACED:
            self.driver.close()  # the client is on another one, and this may well be dead
        else:
            self._close_after(self._reception.farewell_seconds)

    def drain(self) -> None:
        """No new requests; those under way go on."""
        self._draining = True
        if self.greeted:
            self.driver.goodbye(GoodbyeReason.STOPPING)
        else:
            self.driver.close()

    def close(self) -> None:
        self.driver.close()

    def _control(self, frame: FrameReceived) -> None:
        match frame.type:
            case FrameType.HELLO:
                self._greet(frame)
            case FrameType.PING | FrameType.GOODBYE:
                message = decode_message(frame.type, frame.payload)
                if isinstance(message, Ping) and message.signal_dbm is not None:
                    self.driver.signal_dbm = message.signal_dbm
                elif isinstance(message, Goodbye):
                    self._hear_goodbye(message.reason)

    def _greet(self, frame: FrameReceived) -> None:
        answer = self._handshake.receive(frame.payload)
        if isinstance(answer, Challenge):
            self._welcome(answer.payload, ends=False)
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._admit(answer)
        except NodeError as error:
            log.warning("a client at %s is turned away: %s", self.peer, error)
            self._reception.counters.turned_away += 1
            self._welcome(self._handshake.welcome(secrets.token_bytes(SESSION_KEY_BYTES), False), ends=True)
            self.driver.goodbye(GoodbyeReason.UNWELCOME, failure_of(error).text)
            self._close_after(self._reception.farewell_seconds)

    def _admit(self, accepted: Accepted) -> None:
        hello, reception = accepted.hello, self._reception
        session, resumed = reception.sessions.enter(hello.session_key, hello.name, self)
        self.session = session
        reception.counters.resumed += resumed
        self._welcome(self._handshake.welcome(session.key, resumed), ends=True)
        if LZ4 in accepted.capabilities:
            self.driver.allow_compression()
        self.driver.signal_dbm = hello.signal_dbm
        if self._draining:
            self.driver.goodbye(GoodbyeReason.STOPPING)
        log.info("%s is at %s%s", session.owner, self.peer, " again" if resumed else "")

    def _welcome(self, payload: bytes, ends: bool) -> None:
        self.driver.connection.send(FrameType.WELCOME, 0, payload, ends=ends)
        self.driver.flush_soon()

    def _request(self, stream: Stream, request: FrameReceived) -> None:
        session, requests = self.session, self._reception.requests
        if session is None or session.over or session.connection is not self:
            requests.refuse(stream, request, OVER)
        elif self._draining:
            requests.refuse(stream, request, STOPPING)
        else:
            requests.begin(session, stream, request)

    def _hear_goodbye(self, reason: GoodbyeReason) -> None:
        session = self.session
        if session is not None and session.connection is self:
            if reason in FREEING:
                self._reception.sessions.end(session)
            else:
                self._reception.sessions.lose(session, self)
        self.driver.goodbye(GoodbyeReason.FINISHED)
        self._close_after(self._reception.farewell_seconds)

    def _too_slow(self) -> None:
        self._reception.counters.turned_away += 1
        log.info("%s did not greet in time", self.peer)
        self.driver.close()

    def _close_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.driver.lost is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.driver.close)

    def _lost(self, reason: TransportError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        counters = self._reception.counters
        if isinstance(reason, ProtocolBroken) and reason.code is not None:
            counters.faults[reason.code.name] += 1
            log.warning("%s broke the protocol: %s", self.peer, reason)
        if self.session is not None:
            self._reception.sessions.lose(self.session, self)
        self._on_over(self)
