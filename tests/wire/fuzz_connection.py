"""Bytes as a story of one connection: frames that arrive, whole and one byte at a time, and what our side does between.

The first byte is role and state to begin in. Then moves, each led by a byte: below `ACTS_FROM` a frame with its
sequence and checksum right (unless spoilt on purpose), else something that our own side does. A mutator of bytes so
reaches every state, which it never would through a CRC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.wire.pipe import frame, frames_of, move, ready
from transport.codec import Lz4Codec
from wire.connection import Connection, FrameReceived
from wire.errors import LocalError, RemoteError
from wire.flow import cost_of
from wire.frames import FrameType
from wire.limits import LARGEST_PAYLOAD, Limits
from wire.rules import flags_of
from wire.state import ConnectionState, Role

__all__ = ["ACTS_FROM", "Story", "connection_story", "raw_connection", "stories"]

T = FrameType
KINDS = tuple(FrameType)
ACTS_FROM = 0xC0
LIMITS = Limits(streams=5, control_frames=40)
# Bits of a frame's second byte; the two below are its flags.
USUAL_FLAGS, WRONG_SEQUENCE, WRONG_CHECKSUM, CUT_OFF, LARGE = 4, 8, 16, 32, 64


class Side:
    """One connection of a story, fed in steps of some bytes; `told` is all that was heard of it."""

    def __init__(self, setting: int, step: int) -> None:
        self.step, self.sequence = step, 0
        self.connection = _begun(setting)
        self.events: list[FrameReceived] = []
        self.told: list[object] = []
        self.sequence = self.connection._receiver._reader._sequence

    def receive(self, data: bytes) -> None:
        step = self.step if len(data) < 4096 else len(data) // 7 + 1
        try:
            for place in range(0, len(data), step):
                self.connection.receive_data(data[place : place + step])
        except RemoteError as error:
            self.told.append(type(error).__name__)
            assert self.connection.state is ConnectionState.BROKEN
        self._take()

    def act(self, act: Callable[[Connection], object]) -> None:
        try:
            self.told.append(act(self.connection))
        except LocalError as error:
            self.told.append(type(error).__name__)
        self.told.append(b"".join(self.connection.data_to_send(1 << 16)))

    def release(self) -> None:
        for event in self.events:
            self.connection.release(event)
        self.events.clear()

    def _take(self) -> None:
        for event in frames_of(self.connection.events_received()):
            self.told.append((event.type, event.stream_id, bytes(event.payload), event.ends, event.cost, event.placed))
            self.events.append(event)
        self.check()

    def check(self) -> None:
        """No more is held than the limits allow."""
        books = self.connection._books
        kept = sum(cost_of(len(event.payload)) for event in self.events if event.cost and not event.placed)
        within = sum(min(stream.given.held, stream.share) for stream in books.streams.values())
        assert kept <= books.given.held + within <= 2 * LIMITS.connection_window + cost_of(LARGEST_PAYLOAD)
        assert within <= LIMITS.streams * LIMITS.stream_share
        assert len(books.streams) <= LIMITS.streams
        assert len(books.outbox._control) <= LIMITS.control_frames
        waiting = sum(len(line.frames) > 0 for line in books.outbox._lines.values())
        assert books.outbox._queued <= LIMITS.connection_queue + waiting * cost_of(LARGEST_PAYLOAD)
        assert books.outbox._queued == sum(line.queued for line in books.outbox._lines.values())


class Story:
    """The moves in some bytes, told to as many sides as there are."""

    def __init__(self, data: bytes, *sides: Side) -> None:
        self._rest, self._sides = iter(data), sides

    def tell(self) -> None:
        for lead in self._rest:
            if lead >= ACTS_FROM:
                self._act(lead)
            else:
                self._frame(lead)

    def _frame(self, lead: int) -> None:
        kind, how, number = KINDS[lead % len(KINDS)], self._next(), self._next()
        payload = bytes(self._some(self._next()))
        if how & LARGE:
            payload *= 64
        flags = int(flags_of(kind, bool(how & 1) and kind not in _NEVER_ENDS)) if how & USUAL_FLAGS else how & 3
        for side in self._sides:
            data = bytearray(
                frame(kind, 0xFFFF if number == 0xFF else number % 8, payload, sequence=side.sequence, flags=flags)
            )
            if how & WRONG_SEQUENCE:
                data[11] ^= 1
            if how & WRONG_CHECKSUM:
                data[-1] ^= 1
            side.sequence = side.sequence + 1 & 0xFFFF_FFFF
            side.receive(bytes(data[: -1 - number % 20] if how & CUT_OFF else data))

    def _act(self, lead: int) -> None:
        which, size = self._next() % 8, self._next()
        act = ACTS[lead % len(ACTS)]
        for side in self._sides:
            if act is None:
                side.release()
            else:
                side.act(lambda connection: act(connection, which, bytes(size) * (size if size & 1 else 1)))

    def _next(self) -> int:
        return next(self._rest, 0)

    def _some(self, count: int) -> Iterator[int]:
        for _ in range(count):
            yield self._next()


def connection_story(data: bytes) -> None:
    """Both sides of the same story hear the same, however the bytes were cut, and hold what they may."""
    setting = data[0] if data else 0
    whole, single = Side(setting, 1 << 30), Side(setting, 1)
    Story(data[1:], whole, single).tell()
    assert whole.told == single.told


def raw_connection(data: bytes) -> None:
    """Bytes as they are, into either role: frames or the remote error, the same whole and one at a time."""
    for role in Role:
        heard = []
        for step in (len(data) or 1, 1):
            connection, error = Connection(role), ""
            try:
                for place in range(0, len(data), step):
                    connection.receive_data(data[place : place + step])
                connection.receive_end()
            except RemoteError as caught:
                error = type(caught).__name__
            events = frames_of(connection.events_received())
            heard.append((error, connection.state, [(each.type, bytes(each.payload)) for each in events]))
        assert heard[0] == heard[1]


def stories() -> Iterator[bytes]:
    """Beginnings for a mutator: every type in every setting, then rooms, compression, answers and ends that go well."""
    for setting in (0, 1, 2, 3, 4, 5, 13, 12, 21, 52, 53):
        for kind in FrameType:
            yield bytes((setting,)) + _heard(kind, USUAL_FLAGS | 1, 1, b"abc") + _done(int(kind) % len(ACTS), 1, 9)
    plain, block = b"word " * 50, bytes(Lz4Codec().compress(b"word " * 50))
    packed = len(plain).to_bytes(4, "big") + block
    for data in (_heard(T.DATA, 0, 2, plain[:99]), _heard(T.DATA, 2, 2, packed), _heard(T.DATA, LARGE, 2, plain)):
        for act in range(len(ACTS)):
            # The server's end of a WRITE: named room, a whole frame, one that is cut off by what we do, the end.
            cut = _heard(T.DATA, CUT_OFF, 2, b"cut")
            yield b"\x0d" + _done(RECEIVE_INTO, 2, 251) + data + cut + _done(act, 2, 7) + _heard(T.DATA, 1, 2, b"end")
    for kind, number in ((T.TOKENS, 1), (T.DATA, 3), (T.PROGRESS, 1), (T.ACK, 2), (T.DONE, 1)):
        for act in range(len(ACTS)):
            # The client's end: an answer, what we do, credit, the answer's end, and our release of it all.
            told = _heard(kind, 0, number, b"more") + _done(act, number, 8) + _heard(T.CREDIT, 0, number, b"\0\0\1\0")
            yield b"\x0c" + told + _heard(kind, 1, number, b"last") + _done(0, 0, 0) + _heard(T.GOODBYE, 1, 0, b"")
    yield b"\x01" + _heard(T.PING, 0, 0, b"x") * 60
    hello = _heard(T.HELLO, 0, 0, b"hello")
    yield b"\x03" + hello + _done(6, 1, 1) + hello + _done(6, 1, 1) + _heard(T.STATS, 1, 1, b"")


def _heard(kind: FrameType, how: int, number: int, payload: bytes) -> bytes:
    return bytes((KINDS.index(kind), how, number, len(payload))) + payload


def _done(act: int, which: int, size: int) -> bytes:
    lead = ACTS_FROM + (act - ACTS_FROM) % len(ACTS)
    return bytes((lead, which, size))


_NEVER_ENDS = (T.HELLO, T.PING, T.PONG, T.CREDIT)


def _begun(setting: int) -> Connection:
    """Bit 0: role; 1: before the handshake; 2: streams are open; 4: compression is agreed on; 8: one side leaves."""
    role = Role.SERVER if setting & 1 else Role.CLIENT
    if setting & 2:
        return Connection(role, limits=LIMITS, codec=Lz4Codec())
    client, server = ready(LIMITS, Lz4Codec() if setting & 8 else None)
    if setting & 4:
        for kind, ends in ((T.GENERATE, True), (T.WRITE, False), (T.READ, True)):
            client.open_stream(kind, b"asked", ends=ends)
        move(client, server)
    if setting & 16:
        (client if setting & 32 else server).goodbye()
        move(client, server)
        move(server, client)
    for side in (client, server):
        side.events_received()
        side.data_to_send()
    return server if role is Role.SERVER else client


def _receive_into(connection: Connection, which: int, payload: bytes) -> None:
    connection.receive_into(which, memoryview(bytearray(len(payload) + 1)))  # room for some frames


RECEIVE_INTO = 9
ACTS: tuple[Callable[[Connection, int, bytes], object] | None, ...] = (
    None,
    lambda one, which, payload: one.open_stream(KINDS[8 + len(payload) % 19], payload, ends=bool(which & 1)),
    lambda one, which, payload: one.send(T.DATA, which, payload, ends=len(payload) % 5 == 0, compress=True),
    lambda one, which, payload: one.answer(T.TOKENS, which, payload) or one.send(T.TOKENS, which, payload),
    lambda one, which, payload: one.send(T.ACK, which, payload, ends=True),
    lambda one, which, payload: one.send(T.DONE, which, payload, ends=True),
    lambda one, which, payload: one.send(KINDS[len(payload) % len(KINDS)], which, payload, ends=bool(which & 1)),
    lambda one, which, payload: one.cancel(which, payload[:9]),
    lambda one, which, payload: one.fail(which, payload[:9]),
    _receive_into,
    lambda one, which, payload: one.widen(which),
    lambda one, which, payload: one.send(T.PING, 0, payload[:64]),
    lambda one, which, payload: one.goodbye() if which == 7 else one.forget_rooms(),
    lambda one, which, payload: one.abandon() if which == 7 else one.room(which),
)
