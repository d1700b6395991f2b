"""Two ends of a link in one process, and the raw other end of one for hostile bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpu_node.pipeline.ends import LinkEnds, LinkSettings
from gpu_node.pipeline.links import Link
from transport.codec import crc32
from wire.tensors import DType, TensorFlags, TensorHeader, pack_tensor_header

ENDS = LinkEnds(0, 1, epoch=3)
# Silence is the kernel's to measure; tests that wait for it wait so long.
SILENCE_SECONDS = 0.08
PATIENT = LinkSettings(frame_bytes=1 << 16, beat_seconds=1.0, silence_seconds=20.0)
# Where heartbeats must keep something alive meanwhile; `Pulse` says whether they came in time.
BRISK = LinkSettings(frame_bytes=1 << 22, beat_seconds=0.02, silence_seconds=0.4)
HASTY = LinkSettings(frame_bytes=1 << 16, beat_seconds=0.02, silence_seconds=SILENCE_SECONDS)


@contextmanager
def linked(settings: LinkSettings = PATIENT, other: LinkSettings | None = None) -> Iterator[tuple[Link, Link]]:
    one, two = socket.socketpair()
    with Link(one, ENDS, settings) as left, Link(two, ENDS, other or settings) as right:
        yield left, right


@contextmanager
def hostile(settings: LinkSettings = PATIENT) -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the socket on which anything can be said to it."""
    one, two = socket.socketpair()
    with Link(one, ENDS, settings) as link, two:
        yield link, two


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Result]:
    """`work` in a thread of its own; it ends before the block does."""
    result = Result(work)
    result.start()
    try:
        yield result
    finally:
        result.join(60)
        assert not result.is_alive(), "the thread hangs"


class Result(threading.Thread):
    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.value = self._work()
        except Exception as error:  # told to the test
            self.error = error


def header(size: int, **more: Any) -> TensorHeader:
    return TensorHeader(DType.UINT8, (size,), size, **{"flags": TensorFlags.LAST, **more})


def frame_bytes(data: bytes, sequence: int = 0, epoch: int = ENDS.epoch, **more: Any) -> bytes:
    return pack_tensor_header(header(len(data), sequence=sequence, epoch=epoch, **more), crc32) + data


BEAT = pack_tensor_header(header(0), crc32)


class Pulse(threading.Thread):
    """Says BEAT again and again, and knows for how long it did not: a machine may stand still."""

    def __init__(self, line: socket.socket, beat_seconds: float) -> None:
        super().__init__(daemon=True)
        self._line, self._every = line, beat_seconds
        self._longest, self._last, self._stop_it = 0.0, time.monotonic(), threading.Event()

    @property
    def longest_pause(self) -> float:
        """Seconds; that of now among them."""
        return max(self._longest, time.monotonic() - self._last)

    def run(self) -> None:
        while not self._stop_it.wait(self._every):
            began = time.monotonic()
            self._line.sendall(BEAT)
            self._longest = max(self._longest, time.monotonic() - self._last)
            self._last = began

    def __enter__(self) -> Pulse:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()
