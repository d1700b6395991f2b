"""When to compress: keeps the measurements that `wire.compression` decides by, of one connection.

The line's speed comes from real drains (`line_measured`), the compressor's and how well payloads compress from samples
of them, apart for each kind of payload: tokens, a tensor and a model's file have little in common. Must not know
sockets; the clock is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from wire.compression import SAMPLE_BYTES, SMALLEST_BYTES, Advice, Gain, Link, advise
from wire.connection import Codec
from wire.frames import Buffer, FrameType

__all__ = ["Compression"]


class Compression:
    """`link` is the line as measured. Says no to everything until `allowed`, which both sides must have agreed on."""

    def __init__(self, codec: Codec, clock: Callable[[], float] = time.perf_counter) -> None:
        self.allowed = False
        self.link = Link()
        self._codec, self._clock = codec, clock
        self._gains: dict[tuple[FrameType, FrameType], Gain] = {}

    @property
    def signal_dbm(self) -> int | None:
        """What the client told of its Wi-Fi; a weak one counts for less than was measured."""
        return self.link.signal_dbm

    @signal_dbm.setter
    def signal_dbm(self, signal_dbm: int | None) -> None:
        self.link = replace(self.link, signal_dbm=signal_dbm)

    def measured(self, size: int, seconds: float) -> None:
        """The line took so long for so many bytes while more was waiting."""
        self.link = self.link.measured(size, seconds)

    def pays(self, request: FrameType, kind: FrameType, payload: tuple[Buffer, ...]) -> bool:
        """Whether the receiver has this payload sooner when it is compressed; may try on a part of it."""
        if not self.allowed:
            return False
        size = sum(map(len, payload))
        if size < SMALLEST_BYTES:
            return False
        gain = self._gains.get((request, kind), Gain())
        advice = advise(size, self.link, gain)
        if advice is Advice.SAMPLE:
            gain = self._sampled(gain, max(payload, key=len))
            advice = advise(size, self.link, gain)
        else:
            gain = gain.passed()
        self._gains[request, kind] = gain
        return advice is Advice.COMPRESS

    def _sampled(self, gain: Gain, piece: Buffer) -> Gain:
        sample = memoryview(piece)[:SAMPLE_BYTES]
        started = self._clock()
        block = self._codec.compress(sample)
        return gain.sampled(len(sample), len(block), self._clock() - started)
