"""Whether to compress a payload: only when what was measured says that it arrives sooner.

Compressing pays when the time it takes is less than the time it saves on the line. The line's speed and the
compressor's are measured by the caller and smoothed here; how well a stream's payloads compress is learned from a
sample of one, and asked anew later, seldom where it never pays. Knows no compressor, no clock and no line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

__all__ = ["Advice", "Gain", "Link", "advise", "signal_factor"]

# Below this a frame is one packet anyway.
SMALLEST_BYTES = 512
# What a sample needs to tell text from noise, at some microseconds.
SAMPLE_BYTES = 4096
# Must win clearly: the receiver works too, and measurements are rough.
MARGIN = 1.1
# Newer measurements count for a fifth, so one lucky burst does not turn everything.
SMOOTHING = 0.2
# Payloads between two samples: at first few, up to many where compressing never paid.
FEWEST_BETWEEN, MOST_BETWEEN = 4, 256
# Signals of Wi-Fi between which a link goes from as good as measured to a quarter of it.
STRONG_DBM, WEAK_DBM, WEAK_FACTOR = -55, -85, 0.25


class Advice(Enum):
    PLAIN = "plain"
    SAMPLE = "sample"  # compress SAMPLE_BYTES of it, tell `Gain.sampled`, ask again
    COMPRESS = "compress"


@dataclass(frozen=True, slots=True)
class Link:
    """The line as measured: None is not known yet. `signal_dbm` is what a client tells of its Wi-Fi."""

    bytes_per_second: float | None = None
    signal_dbm: int | None = None

    def measured(self, size: int, seconds: float) -> Link:
        """With one more transfer of `size` bytes. Tiny ones tell of the clock, not of the line, and are left out."""
        if size < SAMPLE_BYTES or seconds <= 0:
            return self
        return replace(self, bytes_per_second=_smoothed(self.bytes_per_second, size / seconds))

    @property
    def usable_bytes_per_second(self) -> float | None:
        """What to count on: a weak signal is about to be slower than it was, and every byte of air costs battery."""
        if self.bytes_per_second is None:
            return None
        return self.bytes_per_second * signal_factor(self.signal_dbm)


@dataclass(frozen=True, slots=True)
class Gain:
    """What compressing did to the payloads of one kind: size after by size before, and speed."""

    ratio: float | None = None
    bytes_per_second: float | None = None
    until_sample: int = 0
    between: int = FEWEST_BETWEEN

    def sampled(self, before: int, after: int, seconds: float) -> Gain:
        """With one more measurement; samples get rarer while they show no gain."""
        ratio = min(1.0, after / before)
        speed = self.bytes_per_second if seconds <= 0 else _smoothed(self.bytes_per_second, before / seconds)
        between = min(MOST_BETWEEN, self.between * 2) if ratio > 0.9 else FEWEST_BETWEEN
        return Gain(_smoothed(self.ratio, ratio), speed, between, between)

    def passed(self) -> Gain:
        """One more payload went by without a measurement."""
        return replace(self, until_sample=max(0, self.until_sample - 1))


def advise(size: int, link: Link, gain: Gain) -> Advice:
    """What to do with a payload of `size` bytes. An unmeasured line is taken as too fast to bother."""
    speed = link.usable_bytes_per_second
    if size < SMALLEST_BYTES or speed is None:
        return Advice.PLAIN
    if gain.ratio is None or gain.bytes_per_second is None or gain.until_sample == 0:
        return Advice.SAMPLE
    plain_seconds = size / speed
    compressed_seconds = size / gain.bytes_per_second + plain_seconds * gain.ratio
    return Advice.COMPRESS if compressed_seconds * MARGIN < plain_seconds else Advice.PLAIN


def signal_factor(signal_dbm: int | None) -> float:
    """1 for a strong or unknown signal, falling in a straight line to WEAK_FACTOR."""
    if signal_dbm is None:
        return 1.0
    share = (signal_dbm - WEAK_DBM) / (STRONG_DBM - WEAK_DBM)
    return WEAK_FACTOR + (1.0 - WEAK_FACTOR) * min(1.0, max(0.0, share))


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
