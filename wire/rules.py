"""Which frame means which move: where a type may stand, which flags it has, what it asks or answers.

Pure functions from a header to the moves of `state.py`. A frame that breaks a rule is the receiver's MalformedFrame
and the sender's IllegalSend.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.errors import IllegalReceive, IllegalSend, MalformedFrame
from wire.frames import Flags, FrameType, Header
from wire.limits import HANDSHAKE_PAYLOAD, LARGEST_PAYLOAD
from wire.state import ANSWERS, ConnectionMove, Role, StreamMove, Way

__all__ = [
    "FREE_OF_CREDIT",
    "Meaning",
    "Meanings",
    "check_answer",
    "check_place",
    "connection_move",
    "flags_of",
    "largest_payload",
    "stream_move",
]

_T = FrameType
# They keep a connection going or end something, so they must get through when all credit is spent.
FREE_OF_CREDIT = frozenset({_T.HELLO, _T.WELCOME, _T.PING, _T.PONG, _T.CREDIT, _T.CANCEL, _T.ERROR, _T.GOODBYE})
_ONLY_ON_ZERO = frozenset({_T.HELLO, _T.WELCOME, _T.PING, _T.PONG, _T.GOODBYE})
_ON_ZERO = _ONLY_ON_ZERO | {_T.CREDIT, _T.ERROR}
_ALWAYS_END = frozenset({_T.CANCEL, _T.ERROR, _T.GOODBYE})
_NEVER_END = frozenset({_T.HELLO, _T.PING, _T.PONG, _T.CREDIT})
_REPLIES = frozenset().union(*ANSWERS.values())
# Largest payloads of what needs no credit, where it is not that of the handshake: a flood of PINGs makes us keep PONGs.
_SMALLEST = {_T.CREDIT: 4, _T.PING: 64, _T.PONG: 64}


def flags_of(kind: FrameType, ends: bool) -> Flags:
    """The flags of a frame that we send; an END that its type always has is added."""
    if ends and kind in _NEVER_END:
        raise IllegalSend(f"{kind.name} ends nothing")
    return Flags.END if ends or kind in _ALWAYS_END else Flags.NONE


def largest_payload(kind: FrameType) -> int:
    """What needs no credit is bounded by its type, or it would be a way around all credit."""
    if kind in FREE_OF_CREDIT:
        return _SMALLEST.get(kind, HANDSHAKE_PAYLOAD)
    return LARGEST_PAYLOAD


def check_place(header: Header, way: Way) -> None:
    """The type may stand on this stream and have these flags."""
    kind = header.type
    wrong_stream = kind not in _ON_ZERO if header.stream_id == 0 else kind in _ONLY_ON_ZERO
    wrong_end = kind in (_NEVER_END if header.ends else _ALWAYS_END)
    if wrong_stream or wrong_end or (header.compressed and kind in FREE_OF_CREDIT):
        told = f"{kind.name} on stream {header.stream_id} with {header.flags!r}"
        raise (IllegalSend if way is Way.SEND else MalformedFrame)(told)


def connection_move(header: Header, sender: Role) -> ConnectionMove:
    kind = header.type
    if kind is _T.WELCOME:
        return ConnectionMove.WELCOME if header.ends else ConnectionMove.CHALLENGE
    if kind is _T.HELLO:
        return ConnectionMove.HELLO
    if kind is _T.GOODBYE:
        return ConnectionMove.GOODBYE
    if kind is _T.ERROR and header.stream_id == 0:
        return ConnectionMove.ERROR
    return ConnectionMove.OPEN if sender is Role.CLIENT and kind in ANSWERS else ConnectionMove.TALK


def stream_move(header: Header, sender: Role, way: Way) -> StreamMove:
    """The move of a frame on a stream; raises for types that its sender never sends there."""
    kind, ends = header.type, header.ends
    if sender is Role.CLIENT:
        if kind in ANSWERS:
            return StreamMove.REQUEST_END if ends else StreamMove.REQUEST
        if kind is _T.DATA:
            return StreamMove.MORE_END if ends else StreamMove.MORE
        if kind is _T.CANCEL:
            return StreamMove.CANCEL
    elif kind in _REPLIES or kind is _T.ERROR:
        return StreamMove.REPLY_END if ends else StreamMove.REPLY
    if kind is _T.CREDIT:
        return StreamMove.CLIENT_CREDIT if sender is Role.CLIENT else StreamMove.SERVER_CREDIT
    raise (IllegalSend if way is Way.SEND else IllegalReceive)(f"{kind.name} from the {sender.value}")


def check_answer(request: FrameType, reply: FrameType, way: Way) -> None:
    """The server may answer `request` with `reply`."""
    if reply not in FREE_OF_CREDIT and reply not in ANSWERS[request]:
        raise (IllegalSend if way is Way.SEND else IllegalReceive)(f"{reply.name} as an answer to {request.name}")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a header's type, flags, and whether it stands on stream 0; the rules above put together."""

    move: ConnectionMove
    stream_move: StreamMove | None  # none on stream 0
    flags: Flags
    ends: bool
    is_compressed: bool
    most: int
    is_free: bool
    is_request: bool
    is_placed: bool  # its payload goes into the room named for it


class Meanings:
    """The meanings of what one side sends, each worked out once; `way` is that of whoever looks at them."""

    def __init__(self, sender: Role, way: Way) -> None:
        self._sender, self._way = sender, way
        self._on_stream: dict[tuple[FrameType, Flags], Meaning] = {}
        self._on_zero: dict[tuple[FrameType, Flags], Meaning] = {}
        self._to_send: dict[tuple[FrameType, bool, bool], Meaning] = {}

    def of(self, kind: FrameType, flags: Flags, stream_id: int) -> Meaning:
        """Raises as `check_place` and `stream_move` do."""
        known = self._on_stream if stream_id else self._on_zero
        return known.get((kind, flags)) or self._work_out(Header(kind, flags, stream_id, 0, 0))

    def to_send(self, kind: FrameType, stream_id: int, ends: bool) -> Meaning:
        """As `of` with the flags that `flags_of` gives; raises as it does."""
        key = kind, stream_id == 0, ends
        known = self._to_send.get(key)
        if known is None:
            known = self._to_send[key] = self.of(kind, flags_of(kind, ends), stream_id)
        return known

    def _work_out(self, header: Header) -> Meaning:
        check_place(header, self._way)
        kind, known = header.type, self._on_stream if header.stream_id else self._on_zero
        meaning = known[kind, header.flags] = Meaning(
            connection_move(header, self._sender),
            stream_move(header, self._sender, self._way) if header.stream_id else None,
            header.flags,
            header.ends,
            header.compressed,
            largest_payload(kind),
            kind in FREE_OF_CREDIT,
            kind in ANSWERS,
            kind is _T.DATA and not header.compressed,
        )
        return meaning
