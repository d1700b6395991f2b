"""What may be sent and received when: one table per role for the connection, one per role for a stream.

A move that the table lacks is an error, never a silent skip: ours is an IllegalSend, the peer's an IllegalReceive.
The two views of one connection differ only where frames can cross on the way. This module moves states; it holds
none, and knows neither bytes nor credit.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from wire.errors import IllegalReceive, IllegalSend
from wire.frames import FrameType

__all__ = [
    "ANSWERS",
    "CONNECTION_MOVES",
    "STREAM_MOVES",
    "ConnectionMove",
    "ConnectionState",
    "Role",
    "StreamMove",
    "StreamState",
    "Way",
    "connection_after",
    "stream_after",
]


class _Word(Enum):
    """What it is stands in its name; there is one of each, so identity will do for a hash, and tables are quicker."""

    __hash__ = object.__hash__


class Role(_Word):
    """The client opens the connection and every stream; the server answers."""

    CLIENT = "client"
    SERVER = "server"


class Way(_Word):
    SEND = "send"
    RECEIVE = "receive"


class ConnectionState(_Word):
    START = "start"
    GREETED = "greeted"  # HELLO is under way
    CHALLENGED = "challenged"  # the server wants a proof of the token
    PROVEN = "proven"  # the HELLO with the proof is under way
    READY = "ready"
    DRAINING = "draining"  # the server opens no more streams; those that run go on
    LEAVING = "leaving"  # the client has said its last frame
    BROKEN = "broken"  # the peer broke the protocol: nothing but an ERROR may follow
    CLOSED = "closed"


class ConnectionMove(_Word):
    HELLO = "HELLO"
    CHALLENGE = "WELCOME without END"
    WELCOME = "WELCOME with END"
    OPEN = "a request"
    TALK = "any other frame"
    GOODBYE = "GOODBYE"
    ERROR = "ERROR on stream 0"


class StreamState(_Word):
    IDLE = "idle"  # never used, or closed and free to be used again
    OPEN = "open"
    ENDED = "ended"  # the client has said all
    CANCELLED = "cancelled"  # the client wants no more
    ANSWERED = "answered"  # the server has said all and the client has not


class StreamMove(_Word):
    REQUEST = "request"
    REQUEST_END = "request with END"
    MORE = "DATA of the client"
    MORE_END = "DATA of the client with END"
    CANCEL = "CANCEL"
    CLIENT_CREDIT = "CREDIT of the client"
    SERVER_CREDIT = "CREDIT of the server"
    REPLY = "reply"
    REPLY_END = "reply or ERROR with END"


_S, _R = Way.SEND, Way.RECEIVE
_C, _M = ConnectionState, ConnectionMove
_ConnectionTable = Mapping[ConnectionState, Mapping[tuple[Way, ConnectionMove], ConnectionState]]

_CLIENT: _ConnectionTable = {
    _C.START: {(_S, _M.HELLO): _C.GREETED},
    _C.GREETED: {(_R, _M.CHALLENGE): _C.CHALLENGED, (_R, _M.WELCOME): _C.READY},
    _C.CHALLENGED: {(_S, _M.HELLO): _C.PROVEN},
    _C.PROVEN: {(_R, _M.WELCOME): _C.READY},
    _C.READY: {
        (_S, _M.OPEN): _C.READY,
        (_S, _M.TALK): _C.READY,
        (_R, _M.TALK): _C.READY,
        (_S, _M.GOODBYE): _C.LEAVING,
        (_R, _M.GOODBYE): _C.DRAINING,
    },
    _C.DRAINING: {
        (_S, _M.TALK): _C.DRAINING,
        (_R, _M.TALK): _C.DRAINING,
        (_S, _M.GOODBYE): _C.CLOSED,
    },
    _C.LEAVING: {(_R, _M.TALK): _C.LEAVING, (_R, _M.GOODBYE): _C.CLOSED},
    _C.BROKEN: {},
    _C.CLOSED: {},
}

_SERVER: _ConnectionTable = {
    _C.START: {(_R, _M.HELLO): _C.GREETED},
    _C.GREETED: {(_S, _M.CHALLENGE): _C.CHALLENGED, (_S, _M.WELCOME): _C.READY},
    _C.CHALLENGED: {(_R, _M.HELLO): _C.PROVEN},
    _C.PROVEN: {(_S, _M.WELCOME): _C.READY},
    _C.READY: {
        (_R, _M.OPEN): _C.READY,
        (_R, _M.TALK): _C.READY,
        (_S, _M.TALK): _C.READY,
        (_R, _M.GOODBYE): _C.LEAVING,
        (_S, _M.GOODBYE): _C.DRAINING,
    },
    # A request may have crossed the server's GOODBYE; the server answers it with an ERROR.
    _C.DRAINING: {
        (_R, _M.OPEN): _C.DRAINING,
        (_R, _M.TALK): _C.DRAINING,
        (_S, _M.TALK): _C.DRAINING,
        (_R, _M.GOODBYE): _C.CLOSED,
    },
    _C.LEAVING: {(_S, _M.TALK): _C.LEAVING, (_S, _M.GOODBYE): _C.CLOSED},
    _C.BROKEN: {},
    _C.CLOSED: {},
}


def _with_errors(table: _ConnectionTable) -> _ConnectionTable:
    """Either side may give up at any time; after the peer's fault only the telling of it is left."""
    whole: dict[ConnectionState, Mapping[tuple[Way, ConnectionMove], ConnectionState]] = {}
    for state, moves in table.items():
        ways = {_C.CLOSED: (), _C.BROKEN: (_S,)}.get(state, (_S, _R))
        whole[state] = {**moves, **{(way, _M.ERROR): _C.CLOSED for way in ways}}
    return whole


CONNECTION_MOVES: Mapping[Role, _ConnectionTable] = {
    Role.CLIENT: _with_errors(_CLIENT),
    Role.SERVER: _with_errors(_SERVER),
}

_I, _T = StreamState, StreamMove
_StreamTable = Mapping[StreamState, Mapping[StreamMove, StreamState]]

# As the client sees it: what it may send, and what may arrive.
_CLIENT_STREAM: _StreamTable = {
    _I.IDLE: {_T.REQUEST: _I.OPEN, _T.REQUEST_END: _I.ENDED},
    _I.OPEN: {
        _T.MORE: _I.OPEN,
        _T.MORE_END: _I.ENDED,
        _T.CANCEL: _I.CANCELLED,
        _T.CLIENT_CREDIT: _I.OPEN,
        _T.SERVER_CREDIT: _I.OPEN,
        _T.REPLY: _I.OPEN,
        _T.REPLY_END: _I.ANSWERED,
    },
    # Credit of the server may have crossed the END.
    _I.ENDED: {
        _T.CANCEL: _I.CANCELLED,
        _T.CLIENT_CREDIT: _I.ENDED,
        _T.SERVER_CREDIT: _I.ENDED,
        _T.REPLY: _I.ENDED,
        _T.REPLY_END: _I.IDLE,
    },
    _I.CANCELLED: {
        _T.CLIENT_CREDIT: _I.CANCELLED,
        _T.SERVER_CREDIT: _I.CANCELLED,
        _T.REPLY: _I.CANCELLED,
        _T.REPLY_END: _I.IDLE,
    },
    _I.ANSWERED: {_T.CANCEL: _I.IDLE},
}

# As the server sees it. What the client sent before it saw the server's END is legal and without effect.
_SERVER_STREAM: _StreamTable = {
    _I.IDLE: {
        _T.REQUEST: _I.OPEN,
        _T.REQUEST_END: _I.ENDED,
        _T.CANCEL: _I.IDLE,
        _T.CLIENT_CREDIT: _I.IDLE,
    },
    _I.OPEN: _CLIENT_STREAM[_I.OPEN],
    _I.ENDED: {
        _T.CANCEL: _I.CANCELLED,
        _T.CLIENT_CREDIT: _I.ENDED,
        _T.REPLY: _I.ENDED,
        _T.REPLY_END: _I.IDLE,
    },
    _I.CANCELLED: {_T.CLIENT_CREDIT: _I.CANCELLED, _T.REPLY: _I.CANCELLED, _T.REPLY_END: _I.IDLE},
    _I.ANSWERED: {
        _T.MORE: _I.ANSWERED,
        _T.MORE_END: _I.IDLE,
        _T.CANCEL: _I.IDLE,
        _T.CLIENT_CREDIT: _I.ANSWERED,
    },
}

STREAM_MOVES: Mapping[Role, _StreamTable] = {Role.CLIENT: _CLIENT_STREAM, Role.SERVER: _SERVER_STREAM}

# Which replies each request may get, besides ERROR. The keys are all the requests there are.
ANSWERS: Mapping[FrameType, frozenset[FrameType]] = {
    FrameType.LOAD: frozenset({FrameType.PROGRESS, FrameType.LOADED}),
    FrameType.UNLOAD: frozenset({FrameType.ACK}),
    FrameType.PUSH: frozenset({FrameType.PROGRESS, FrameType.ACK}),
    FrameType.GENERATE: frozenset({FrameType.PROGRESS, FrameType.TOKENS, FrameType.DONE}),
    FrameType.EMBED: frozenset({FrameType.PROGRESS, FrameType.VECTORS}),
    FrameType.ALLOC: frozenset({FrameType.ALLOCATED}),
    FrameType.FREE: frozenset({FrameType.ACK}),
    FrameType.WRITE: frozenset({FrameType.ACK}),
    FrameType.READ: frozenset({FrameType.DATA}),
    FrameType.RUN: frozenset({FrameType.PROGRESS, FrameType.DATA, FrameType.ALLOCATED}),
    FrameType.STATS: frozenset({FrameType.STATS}),
}


def connection_after(role: Role, state: ConnectionState, way: Way, move: ConnectionMove) -> ConnectionState:
    """The state after `move`, seen by `role`."""
    after = CONNECTION_MOVES[role][state].get((way, move))
    if after is None:
        raise _fault(way)(f"{move.value} while {state.value}")
    return after


def stream_after(role: Role, state: StreamState, way: Way, move: StreamMove) -> StreamState:
    """The state of a stream after `move`, seen by `role`; `way` says whose fault an illegal one is."""
    after = STREAM_MOVES[role][state].get(move)
    if after is None:
        raise _fault(way)(f"{move.value} on a stream that is {state.value}")
    return after


def _fault(way: Way) -> type[IllegalSend] | type[IllegalReceive]:
    return IllegalSend if way is Way.SEND else IllegalReceive
