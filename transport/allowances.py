"""How much each source may ask of us: token buckets, so that a flood costs little and nobody is made to shout for it.

Pure: time is an argument. Invariant: the sources that are remembered are bounded; the one that was silent longest is
forgotten first. All together have a bucket of their own, so that invented sources gain nothing; only what has proved to
be worth an answer is counted there, or garbage could use up what is everybody's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Allowances", "Rate"]

SOURCES_REMEMBERED = 1024  # more hosts than a local network has


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a second in the long run, and so many at once."""

    per_second: float
    burst: float


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float

    def take(self, rate: Rate, now: float) -> bool:
        self.left = min(rate.burst, self.left + max(0.0, now - self.at) * rate.per_second)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Allowances:
    def __init__(self, each: Rate, together: Rate, sources: int = SOURCES_REMEMBERED) -> None:
        self._each, self._together, self._most = each, together, sources
        self._all = _Bucket(together.burst, 0.0)
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: Hashable, now: float) -> bool:
        """Whether `source` may have one more of its own at `now` (seconds); counts it if so."""
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = _Bucket(self._each.burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(source)
        return bucket.take(self._each, now)

    def take_together(self, now: float) -> bool:
        """Whether all may have one more. Ask for what was looked at and is no garbage."""
        return self._all.take(self._together, now)
