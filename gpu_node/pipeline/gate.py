"""Where links are made: a stage listens at its gate, the one before it connects. Unix or TCP, always with a token.

Strangers cannot keep a link from being made: their greetings run beside each other, each for a bounded time, and only
so many at once. Must not know what links carry.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gpu_node.errors import UsageError
from gpu_node.pipeline.ends import USUAL, LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkClosed, LinkFault, LinkSilent
from gpu_node.pipeline.handshake import Agreement, ReceiverGreeting, SenderGreeting, Side
from gpu_node.pipeline.links import Link
from wire.auth import NONCE_SIZE
from wire.frames import Buffer

# A Unix socket's path, or host and port.
Place = str | tuple[str, int]
GREETING_SECONDS = 2.0
MOST_GREETINGS = 16
# What the kernel's address has room for, with its final zero.
LONGEST_PATH = 103


def connect_link(
    place: Place,
    ends: LinkEnds,
    token: str,
    settings: LinkSettings = USUAL,
    within_seconds: float = 5.0,
    rooms: Sequence[Buffer] = (),
) -> Link:
    """A link to the stage that listens there; `rooms` as for `Link`.

    Raises `LinkRefused`, `LinkClosed` where nobody listens, `LinkSilent` where nobody answers.
    """
    deadline = time.monotonic() + within_seconds
    greeting = SenderGreeting(_side(token, settings), ends)
    line = _connected(place, within_seconds)
    try:
        line.sendall(greeting.begin())
        while greeting.agreement is None:
            answer = greeting.receive(_exactly(line, greeting.needed, deadline))
            if answer:
                line.sendall(answer)
    except BaseException as error:
        line.close()
        if isinstance(error, TimeoutError):
            raise LinkSilent(f"{_text(place)} does not answer") from error
        if isinstance(error, OSError):
            raise LinkClosed(f"{_text(place)} has hung up: {error.strerror or error}") from error
        raise
    return _link(line, greeting.agreement, settings, rooms)


class Gate:
    """Listens from the beginning; `close` also turns away who is still greeting."""

    def __init__(self, place: Place, token: str, settings: LinkSettings = USUAL) -> None:
        """Raises `UsageError` for a place that cannot be listened at."""
        self._settings, self._token = settings, _checked(token)
        self._listener = _listening(place)
        # With the port that was given where 0 was asked for.
        self.place: Place = place if isinstance(place, str) else self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._callers: dict[socket.socket, _Caller] = {}
        self.refused = 0  # strangers, and stages of another plan

    def admit(self, expected: Collection[LinkEnds], within_seconds: float, rooms: Sequence[Buffer] = ()) -> Link:
        """The next link that is one of `expected`. Raises `LinkSilent` when none comes in time."""
        deadline = time.monotonic() + within_seconds
        while (left := deadline - time.monotonic()) > 0:
            self._drop_late(time.monotonic())
            soonest = min((caller.deadline for caller in self._callers.values()), default=deadline)
            for key, _ in self._selector.select(max(min(left, soonest - time.monotonic()), 0)):
                line = key.fileobj
                assert isinstance(line, socket.socket), "only sockets are registered"
                if line is self._listener:
                    self._greet()
                elif (agreement := self._go_on(line, expected)) is not None:
                    return _link(line, agreement, self._settings, rooms)
        awaited = ", ".join(f"{ends.source} to {ends.target}" for ends in expected)
        raise LinkSilent(f"no link from stage {awaited} was made within {within_seconds} s")

    def close(self) -> None:
        for line in list(self._callers):
            self._forget(line).close()
        self._selector.close()
        self._listener.close()
        if isinstance(self.place, str):
            Path(self.place).unlink(missing_ok=True)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greet(self) -> None:
        try:
            line, _ = self._listener.accept()
        except OSError:  # it left before it was let in
            return
        if len(self._callers) >= MOST_GREETINGS:
            self.refused += 1
            line.close()
            return
        line.setblocking(False)
        greeting = ReceiverGreeting(_side(self._token, self._settings))
        self._callers[line] = _Caller(greeting, time.monotonic() + GREETING_SECONDS)
        self._selector.register(line, selectors.EVENT_READ)

    def _go_on(self, line: socket.socket, expected: Collection[LinkEnds]) -> Agreement | None:
        """Takes in what has come; whoever is refused, or breaks off, is forgotten."""
        caller = self._callers[line]
        greeting = caller.greeting
        try:
            more = line.recv(greeting.needed - len(caller.received))
            if not more:
                raise ConnectionResetError("it has left")
            caller.received += more
            if len(caller.received) == greeting.needed:
                data, caller.received = caller.received, b""
                line.send(greeting.receive(data, expected))  # a few bytes into an empty buffer
        except BlockingIOError:
            return None
        except (OSError, LinkFault):
            self._turn_away(line)
            return None
        if greeting.agreement is not None:
            self._forget(line)
        elif greeting.verdict is not None:
            self._turn_away(line)
        return greeting.agreement

    def _turn_away(self, line: socket.socket) -> None:
        self.refused += 1
        self._forget(line).close()

    def _forget(self, line: socket.socket) -> socket.socket:
        del self._callers[line]
        self._selector.unregister(line)
        return line

    def _drop_late(self, now: float) -> None:
        for line, caller in list(self._callers.items()):
            if caller.deadline <= now:
                self._turn_away(line)


@dataclass(slots=True)
class _Caller:
    greeting: ReceiverGreeting
    deadline: float
    received: bytes = b""


def _side(token: str, settings: LinkSettings) -> Side:
    return Side(_checked(token), secrets.token_bytes(NONCE_SIZE), settings.frame_bytes)


def _checked(token: str) -> str:
    if not token:
        raise UsageError("stages are joined with a token, so that no stranger gets between them")
    return token


def _link(line: socket.socket, agreement: Agreement, settings: LinkSettings, rooms: Sequence[Buffer]) -> Link:
    return Link(line, agreement.ends, settings, rooms=rooms, peer_frame_bytes=agreement.peer_frame_bytes)


def _connected(place: Place, within_seconds: float) -> socket.socket:
    try:
        if isinstance(place, tuple):
            return socket.create_connection(place, within_seconds)
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(within_seconds)
            line.connect(place)
        except OSError:
            line.close()
            raise
        return line
    except OSError as error:
        raise LinkClosed(f"nobody listens at {_text(place)}: {error.strerror or error}") from error


def _exactly(line: socket.socket, size: int, deadline: float) -> bytes:
    """Raises OSError, TimeoutError among them."""
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        more = line.recv(size - len(data))
        if not more:
            raise ConnectionResetError("it has hung up")
        data += more
    return data


def _listening(place: Place) -> socket.socket:
    if isinstance(place, str) and len(os.fsencode(place)) > LONGEST_PATH:
        raise UsageError(f"the path of a socket has at most {LONGEST_PATH} bytes: {place}")
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    listener = socket.socket(family)
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        if isinstance(place, str):
            os.chmod(place, 0o600)  # before anybody can connect
        listener.listen(MOST_GREETINGS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(f"{_text(place)} cannot be listened at: {error.strerror or error}") from error
    return listener


def _text(place: Place) -> str:
    return place if isinstance(place, str) else f"{place[0]}:{place[1]}"
