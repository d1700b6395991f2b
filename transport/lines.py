"""A connected plain socket in an event loop: receives into the protocol's buffers, writes many buffers in one call.

Invariants: nothing is copied but the small pieces of a write that has more than the kernel takes at once; one turn of
the loop reads a bounded amount, so all connections get theirs; after `close` the loop knows nothing of the socket. A
`Line` is what a driver needs of any connection, `Feed` what a line needs of its driver. Must not know frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

from wire.frames import Buffer

__all__ = ["Feed", "Line", "SocketLine", "joined"]

# One turn of reading: long enough for a full frame in it, some hundred microseconds of memory copying.
TURN_BYTES = 1 << 20
# What a frame counts for at least: 128 small ones take about as long as copying the above.
FRAME_BYTES = 8 << 10
# Measurements of less time than this tell of the loop's turns and not of the line.
SHORTEST_SECONDS = 0.002
# When there are more buffers than one write takes: pieces up to this are put together, a copy is cheaper than a call.
SMALL_BYTES = 2048
# What is thrown away at once while waiting for the peer to close.
DISCARD_BYTES = 64 << 10
# What the system takes in one gather write.
IOV_MOST = min(1024, os.sysconf("SC_IOV_MAX")) if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 1024


class Feed(Protocol):
    """The driver, as its line sees it. Every method may close the line."""

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        ...

    def buffer_updated(self, count: int) -> int:
        """So many bytes have come; returns how many frames became whole by them."""
        ...

    def turn_over(self) -> None:
        """Reading pauses until the loop's next turn."""
        ...

    def line_ready(self) -> None:
        """All that was kept back is written; `write` again."""
        ...

    def line_measured(self, size: int, seconds: float) -> None:
        """The line took `size` bytes in this time while more was waiting all along."""
        ...

    def line_ended(self) -> None:
        """The peer sends no more. It may still read."""
        ...

    def line_lost(self, error: OSError | None) -> None:
        """Nothing can be sent or received any more."""
        ...


class Line(Protocol):
    """A connection of bytes. After `start`, and until `close`, it calls its feed."""

    @property
    def is_full(self) -> bool:
        """Something of the last `write` is kept back: no other write before `line_ready`."""
        ...

    @property
    def sent_bytes(self) -> int: ...

    @property
    def received_bytes(self) -> int: ...

    def start(self, feed: Feed) -> None: ...

    def write(self, buffers: list[Buffer]) -> bool:
        """Whether all is gone; else the rest is kept, uncopied, and `line_ready` follows. Never raises."""
        ...

    def end(self) -> None:
        """Nothing more will be written, and what comes is of no interest: thrown away until `line_ended`."""
        ...

    def close(self) -> None:
        """At once, with all that is kept back; the descriptor is given back. Harmless when closed."""
        ...


class SocketLine:
    """Owns `connected`, a stream socket. `clock` (seconds) times how fast a full socket drains."""

    # What says that nothing is there, or nothing fits, right now.
    _again: tuple[type[OSError], ...] = (BlockingIOError, InterruptedError)
    # Whether a buffer that was not filled means that no more is there, which saves asking.
    _short_is_all = True

    def __init__(self, connected: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # we gather, so waiting gains nothing
        self.sent_bytes = self.received_bytes = 0
        self._socket, self._descriptor, self._clock = connected, connected.fileno(), clock
        self._error_of = partial(connected.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
        self._kept: deque[Buffer] = deque()
        self._broken = self._closed = self._reading = self._writing = self._discarding = False
        self._doom: OSError | None = None  # the socket is dead: what it still holds is read, then this is told
        self._full_since: float | None = None
        self._sent_since = 0

    @property
    def is_full(self) -> bool:
        return bool(self._kept) or self._broken

    def start(self, feed: Feed) -> None:
        self._loop, self._feed = asyncio.get_running_loop(), feed
        # libuv calls once for a reset connection, with what came before it, and never again: there one has to look.
        self._tells_once = not isinstance(self._loop, asyncio.SelectorEventLoop)
        self._loop.add_reader(self._descriptor, self._read)
        self._reading = True

    def write(self, buffers: list[Buffer]) -> bool:
        assert not self._kept, "the last write is not done"
        if self._closed or self._broken:
            return False
        buffers = self._prepared(buffers)
        sent = self._send(buffers[:IOV_MOST])
        if sent == sum(map(len, buffers)):
            return True
        self._kept.extend(buffers)
        self._leave_off(sent)
        if not self._broken:
            self._note_full()
            self._start_writing()
        return False

    def end(self) -> None:
        """Says that nothing more comes; what still arrives is thrown away, until `line_ended`."""
        self._discarding = True
        self._kept.clear()
        self._stop_writing()
        with contextlib.suppress(OSError):  # the peer was faster; reading will tell
            self._say_end()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._kept.clear()
        self._stop_reading()
        self._stop_writing()
        self._socket.close()

    def _prepared(self, buffers: list[Buffer]) -> list[Buffer]:
        return joined(buffers, SMALL_BYTES) if len(buffers) > IOV_MOST else buffers

    def _say_end(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        if self._discarding:
            self._discard()
        else:
            self._receive()
        if self._tells_once and self._doom is None and self._reading and (number := self._error_of()):
            self._doom = OSError(number, os.strerror(number))
        if self._doom is not None and self._reading:
            self._loop.call_soon(self._read_on)  # no event tells of what is left to read

    def _read_on(self) -> None:
        if self._reading:
            self._read()

    def _receive(self) -> None:
        feed, receive, left = self._feed, self._socket.recv_into, TURN_BYTES
        while left > 0:
            buffer = feed.get_buffer()
            try:
                count = receive(buffer)
            except self._again:
                if self._doom is not None:
                    return self._lose(self._doom)
                break
            except OSError as error:
                return self._lose(error)
            if not count:
                return self._ended()
            self.received_bytes += count
            left -= max(count, feed.buffer_updated(count) * FRAME_BYTES)
            if self._closed or self._discarding:
                return None
            if count < len(buffer) and self._short_is_all:
                break  # the loop tells when there is more
        return feed.turn_over()

    def _discard(self) -> None:
        try:
            count = len(socket.socket.recv(self._socket, DISCARD_BYTES))
        except self._again:
            count = int(self._doom is None)
        except OSError:
            count = 0
        if not count:
            self._stop_reading()
            self._feed.line_ended()

    def _ended(self) -> None:
        if self._doom is not None:
            return self._lose(self._doom)
        self._stop_reading()
        self._feed.turn_over()
        return None if self._closed else self._feed.line_ended()

    def _lose(self, error: OSError) -> None:
        self._stop_reading()
        self._stop_writing()
        self._broken = True
        self._feed.line_lost(error)

    def _write_kept(self) -> None:
        sent = self._send(list(islice(self._kept, IOV_MOST)))
        self._leave_off(sent)
        if self._broken:
            return
        if self._kept:
            self._note_full()
            return
        self._full_since = None
        self._stop_writing()
        self._feed.line_ready()

    def _send(self, buffers: list[Buffer]) -> int:
        try:
            sent = self._socket.send(buffers[0]) if len(buffers) == 1 else self._socket.sendmsg(buffers)
        except self._again:
            return 0
        except OSError as error:
            return self._fail_to_send(error)
        self.sent_bytes += sent
        self._sent_since += sent
        return sent

    def _fail_to_send(self, error: OSError) -> int:
        # What the peer said before it left is still to be read, and often says why; then reading ends as well.
        self._broken, self._doom = True, error
        self._stop_writing()
        self._loop.call_soon(self._read_on if self._reading else partial(self._feed.line_lost, error))
        return 0

    def _leave_off(self, sent: int) -> None:
        """Forgets the first `sent` bytes of what is kept."""
        kept = self._kept
        if self._broken:
            kept.clear()
            return
        while sent and sent >= len(kept[0]):
            sent -= len(kept.popleft())
        if sent:
            kept[0] = memoryview(kept[0])[sent:]

    def _note_full(self) -> None:
        """Between two moments at which the socket is full, exactly what the line took was written."""
        now = self._clock()
        if self._full_since is not None and self._sent_since:
            if now - self._full_since < SHORTEST_SECONDS:
                return
            self._feed.line_measured(self._sent_since, now - self._full_since)
        self._full_since, self._sent_since = now, 0

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._descriptor, self._write_kept)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._descriptor)


def joined(buffers: Sequence[Buffer], small_bytes: int) -> list[Buffer]:
    """The same bytes in fewer buffers: runs of small ones are put together, larger ones stay as they are."""
    out: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) <= small_bytes:
            run.append(buffer)
            continue
        if run:
            out.append(b"".join(run))
            run = []
        out.append(buffer)
    if run:
        out.append(b"".join(run))
    return out
