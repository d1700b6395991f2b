"""The streams of one connection, what they hold, and what follows from a change of their state.

The books of a connection: its state, its streams, the credit given and the box of what waits to be sent. Every change
goes through here, so sender and receiver of one side agree. Knows no payloads and parses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from wire.errors import TooLarge
from wire.flow import GivenCredit, SharedCredit
from wire.frames import Checksum, Flags, FrameType
from wire.limits import INITIAL_CONNECTION_CREDIT, INITIAL_STREAM_CREDIT, RESERVED_PART, Limits
from wire.outbox import SIZE_FIELD, Line, Outbox, Waiting
from wire.rules import Meaning, Meanings
from wire.state import (
    ANSWERS,
    CONNECTION_MOVES,
    STREAM_MOVES,
    ConnectionMove,
    ConnectionState,
    Role,
    StreamMove,
    StreamState,
    Way,
    connection_after,
    stream_after,
)

__all__ = ["ROOMLESS", "SIZE_FIELD", "Books", "Stream"]


# Nobody waits for more of what comes in: rooms that were named are let go.
ROOMLESS = frozenset({StreamState.CANCELLED, StreamState.ANSWERED, StreamState.IDLE})
# Here the server's answers that do not end anything leave all as it is.
_TALKING = frozenset({StreamState.OPEN, StreamState.ENDED})
_USUAL = {
    request: {int(kind): kind for kind in answers if kind is not FrameType.DATA} for request, answers in ANSWERS.items()
}
_NOTHING: Mapping[int, FrameType] = {}
# Their DATA is a tensor's bytes, which mean the same in frames of any size.
_TENSOR_REQUESTS = frozenset({FrameType.WRITE, FrameType.READ, FrameType.RUN})


@dataclass(slots=True, eq=False)
class Stream:
    """One stream from its request to its two ends; a later stream of the same number is another one.

    `moves` is the row of the table that its state has, `answers` what its request may get besides ERROR, `usual` those
    of them that change no state and go into no room: all that takes no more than a glance.
    """

    number: int
    request: FrameType
    answers: frozenset[FrameType]
    line: Line = field(repr=False)
    moves: Mapping[StreamMove | None, StreamState] = field(repr=False)
    state: StreamState = StreamState.IDLE
    given: GivenCredit = field(default_factory=lambda: GivenCredit(INITIAL_STREAM_CREDIT))
    usual: Mapping[int, FrameType] = field(default_factory=dict)
    share: int = 0  # what it may hold without counting against the connection's window
    rooms: deque[memoryview] = field(default_factory=deque)

    def place(self, size: int) -> memoryview | None:
        """The part of the first room that `size` bytes go into; None without rooms. Raises TooLarge without a place."""
        if not self.rooms or not size:
            return None
        room = self.rooms[0]
        if size > len(room):
            raise TooLarge(f"{size} bytes of DATA where {len(room)} have room")
        if size == len(room):
            self.rooms.popleft()
        else:
            self.rooms[0] = room[size:]
        return room[:size]


class Widened:
    """Bulk streams and what each has of the connection's window.

    Each gets half of what is left at most, so there always is something left; a part of the window is for all others.
    """

    def __init__(self, limits: Limits) -> None:
        self._left = limits.connection_window - limits.connection_window // RESERVED_PART
        self._most = limits.bulk_window - INITIAL_STREAM_CREDIT
        self._shares: dict[Stream, int] = {}
        self._waiting: dict[Stream, None] = {}  # those that would take more, the first comes first

    def widen(self, stream: Stream) -> bool:
        """Whether the stream has got all that one may."""
        share = self._shares.get(stream, 0)
        more = min(self._most - share, self._left // 2)
        if share + more < self._most:
            self._waiting[stream] = None
        else:
            self._waiting.pop(stream, None)
        if more >= INITIAL_STREAM_CREDIT or share + more == self._most:  # less would not be worth its CREDIT
            self._shares[stream] = share + more
            self._left -= more
            stream.given.widen(INITIAL_STREAM_CREDIT + share + more)
        return stream not in self._waiting

    def forget(self, stream: Stream) -> list[Stream]:
        """The stream is over; returns those that have more now."""
        share = self._shares.pop(stream, 0)
        self._left += share
        self._waiting.pop(stream, None)
        widened: list[Stream] = []
        if share:
            for other in list(self._waiting):
                widened.append(other)
                if not self.widen(other):
                    break
        return widened


class Books:
    """What `Receiver` and `Connection` share."""

    def __init__(self, role: Role, limits: Limits, checksum: Checksum) -> None:
        self.role, self.limits = role, limits
        self.peer = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self.said, self.heard = Meanings(role, Way.SEND), Meanings(self.peer, Way.RECEIVE)
        self.outbox = Outbox(limits, checksum)
        self.streams: dict[int, Stream] = {}
        self.given = SharedCredit(INITIAL_CONNECTION_CREDIT)
        self._closing: set[int] = set()
        self._widened = Widened(limits)
        self._rows: dict[StreamState, Mapping[StreamMove | None, StreamState]] = {
            state: {move: after for move, after in row.items()} for state, row in STREAM_MOVES[role].items()
        }
        self._credit_move = StreamMove.CLIENT_CREDIT if role is Role.CLIENT else StreamMove.SERVER_CREDIT
        self._enter(ConnectionState.START)

    def _enter(self, state: ConnectionState) -> None:
        """A new state, with its row of the table."""
        self.state = state
        row = CONNECTION_MOVES[self.role][state]
        self.sends = {move: after for (way, move), after in row.items() if way is Way.SEND}
        self.receives = {move: after for (way, move), after in row.items() if way is Way.RECEIVE}
        self.is_deaf = state is ConnectionState.BROKEN or state is ConnectionState.CLOSED
        self.may_talk = ConnectionMove.TALK in self.sends
        self.hears_answers = ConnectionMove.TALK in self.receives and self.role is Role.CLIENT
        self.says_answers = self.may_talk and self.role is Role.SERVER

    def check(self, meaning: Meaning, way: Way) -> None:
        """The table has such a move now; raises IllegalSend or IllegalReceive."""
        if meaning.move not in (self.sends if way is Way.SEND else self.receives):
            connection_after(self.role, self.state, way, meaning.move)

    def move(self, meaning: Meaning, way: Way) -> None:
        """The connection's state after such a frame, which the table must have."""
        after = (self.sends if way is Way.SEND else self.receives).get(meaning.move)
        if after is self.state:
            return
        self._enter(connection_after(self.role, self.state, way, meaning.move))
        if self.is_deaf:
            self.outbox.clear_all()
        elif self.state is ConnectionState.READY:
            self.given.widen(self.limits.connection_window)
            self.grant(0, self.given)

    def after(self, stream: Stream | None, meaning: Meaning, way: Way) -> StreamState:
        """The state of `stream` after such a frame, which the table must have; None is one that is yet to begin."""
        after = (stream.moves if stream else self._rows[StreamState.IDLE]).get(meaning.stream_move)
        if after is None:
            assert meaning.stream_move is not None, "a frame of stream 0"
            before = stream.state if stream else StreamState.IDLE
            return stream_after(self.role, before, way, meaning.stream_move)
        return after

    def break_off(self) -> None:
        self._enter(ConnectionState.BROKEN)
        self.outbox.clear_all()

    def begin(self, number: int, request: FrameType) -> Stream:
        line, moves = self.outbox.open(number, may_cut=request in _TENSOR_REQUESTS), self._rows[StreamState.IDLE]
        stream = self.streams[number] = Stream(
            number, request, ANSWERS[request], line, moves, usual=_USUAL[request], share=self.limits.stream_share
        )
        return stream

    def settle(self, stream: Stream, after: StreamState) -> None:
        """The stream's new state, and what follows from it."""
        if after is stream.state:
            return
        stream.state, stream.moves = after, self._rows[after]
        number = stream.number
        if after not in _TALKING:
            stream.usual = _NOTHING
        if self._credit_move not in stream.moves:
            self.outbox.withhold(number)
        if after in ROOMLESS:
            stream.rooms.clear()  # what still comes is not looked at
        if self.role is Role.CLIENT and self._has_unsaid(stream):
            # The server has said all and listens to the rest for nothing: end our half without sending that rest.
            self.outbox.clear(number)
            if self.may_talk:
                self.outbox.add_control(Waiting(FrameType.CANCEL, number, Flags.END, (), 0))
            stream.state, stream.moves = StreamState.IDLE, self._rows[StreamState.IDLE]
        if stream.state is StreamState.IDLE:
            self._closing.add(number)
            self.close_finished()

    def close_finished(self) -> None:
        """Forgets the streams that are over, as soon as what they had to say is on its way."""
        if not self._closing:
            return
        for number in [number for number in self._closing if not self.outbox.has_waiting(number)]:
            self._closing.discard(number)
            self.outbox.close(number)
            stream = self.streams.pop(number)
            # Open streams have a share; what is still held of this one counts as what it is.
            self.given.held += min(stream.given.held, stream.share)
            stream.share = 0
            for other in self._widened.forget(stream):
                self.grant(other.number, other.given)

    def withdraw(self, stream: Stream) -> None:
        """Ends a stream of which the peer never heard."""
        self.outbox.clear(stream.number)
        self.settle(stream, StreamState.IDLE)

    def take(self, stream: Stream, cost: int) -> None:
        """A frame of the stream has arrived. Within the stream's share the connection gives credit anew at once."""
        given, own = self.given, stream.given
        own.left -= cost
        own.held = held = own.held + cost
        given.left -= cost
        over = held - stream.share
        if over > 0:
            given.held += min(over, cost)
        if given.left * 2 <= given.window - given.held and given.is_due:
            self.grant(0, given)

    def give_back(self, stream: Stream, cost: int) -> None:
        """A frame of the stream needs no room any more."""
        over = stream.given.held - stream.share
        own_due = stream.given.consume(cost)  # the stream's first: it is the one to notice a frame given back twice
        if over > 0 and self.given.consume(min(over, cost)):
            self.grant(0, self.given)
        if own_due and self.streams.get(stream.number) is stream:
            self.grant(stream.number, stream.given)

    def widen(self, stream: Stream) -> None:
        """Lets the peer have more of the stream under way, as far as the others leave it; more when they are over."""
        self._widened.widen(stream)
        self.grant(stream.number, stream.given)

    def grant(self, number: int, given: GivenCredit) -> None:
        """Sends what credit is due, unless nobody could use it any more."""
        if not self.may_talk or (number and self._credit_move not in self.streams[number].moves):
            return
        if number and self.role is Role.CLIENT and not self.outbox.has_started(number):
            return  # it would overtake the request and be for a stream that the peer does not know yet
        if due := given.due():
            self.outbox.give(number, due)

    def _has_unsaid(self, stream: Stream) -> bool:
        over = stream.state is StreamState.IDLE and self.outbox.has_waiting(stream.number)
        return over or stream.state is StreamState.ANSWERED
