"""A phone as a body that warms up with its work and slows down by its own rules. Pure; seconds and degrees Celsius.

Published, and shown by each kind below at constant load in a room of 25 degrees: a Tensor G3 falls from 196 ms to about
400 ms a frame within 30 minutes while a Dimensity 900 stays flat (microsoft/MegaDetector#34); a Galaxy S24 Ultra's
system forces the lowest clock and inference stops (arXiv 2603.23640); a Pixel 6a ran 91 minutes at thermal status 0
(elizaOS/eliza#11734). Assumed: temperatures, the time constant, and that heat goes with the speed of writing;
`Assumed` holds what of it a run may vary, to see how much hangs on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

TIME_CONSTANT_SECONDS = 720.0  # a battery behind glass: two thirds of the way in twelve minutes


@dataclass(frozen=True, slots=True)
class Throttling:
    """Slows down in a straight line between two marks; `stops_at` ends all work until it is as cool as `resumes_at`."""

    from_c: float = math.inf
    until_c: float = math.inf
    least_speed: float = 1.0  # of the full one, at `until_c`
    stops_at: float = math.inf
    resumes_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Kind:
    """`rise_c`: how much warmer than the room it would become at full speed for ever, were it not slowed down."""

    tokens_per_second: float
    rise_c: float
    throttling: Throttling = Throttling()


@dataclass(frozen=True, slots=True)
class Assumed:
    """What nobody has published."""

    heat: float = 1.0  # times the `rise_c` of each kind
    time_constant_seconds: float = TIME_CONSTANT_SECONDS


AS_ASSUMED = Assumed()


KINDS: Mapping[str, Kind] = {
    "Snapdragon 8 Gen 3": Kind(27.3, 36.0, Throttling(stops_at=46.0, resumes_at=42.0)),  # speed: llama.cpp#14337
    "Tensor G3": Kind(15.0, 42.0, Throttling(from_c=41.0, until_c=46.0, least_speed=0.45)),  # speed assumed
    "Dimensity 900": Kind(8.0, 13.0),  # speed assumed
    "Tensor G1": Kind(6.8, 11.0),  # speed: elizaOS/eliza#11734
}


@dataclass(slots=True)
class Body:
    """One phone in its place."""

    kind: Kind
    room_c: float
    temperature_c: float
    stopped: bool = False
    assumed: Assumed = AS_ASSUMED

    @classmethod
    def at_rest(cls, kind: Kind, room_c: float, assumed: Assumed = AS_ASSUMED) -> Body:
        return cls(kind, room_c, room_c, assumed=assumed)

    @property
    def speed(self) -> float:
        """The share of its full speed at which it would write now."""
        rules = self.kind.throttling
        if self.stopped:
            return 0.0
        if self.temperature_c <= rules.from_c:
            return 1.0
        way = min(1.0, (self.temperature_c - rules.from_c) / (rules.until_c - rules.from_c))
        return 1.0 - way * (1.0 - rules.least_speed)

    @property
    def thermal_status(self) -> int:
        """What Android would say: severe once it takes clocks away in earnest, moderate where it begins to."""
        if self.stopped or self.speed < 0.75:
            return 3
        return 2 if self.speed < 1.0 else 0

    def live(self, seconds: float, working: bool) -> float:
        """Time passes; the tokens that were written. `seconds` is small beside the time constant."""
        share = self.speed if working else 0.0
        goal = self.room_c + self.kind.rise_c * self.assumed.heat * share
        self.temperature_c += (goal - self.temperature_c) * seconds / self.assumed.time_constant_seconds
        rules = self.kind.throttling
        if self.temperature_c >= rules.stops_at:
            self.stopped = True
        elif self.stopped and self.temperature_c <= rules.resumes_at:
            self.stopped = False
        return share * self.kind.tokens_per_second * seconds
