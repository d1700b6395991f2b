"""The circuit breaker of one node, as a pure table of three states.

Only the outcomes of requests drive it; probes never do (a phone that answers `/api/tags` and stalls on every prompt
must leave). Three failures in a row open it for 30 s, then exactly one request tries; each further opening doubles the
rest, up to five minutes. A sign that the node is a new one (restart, replug, new address) ends the rest at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MOST_DOUBLINGS = 64  # beyond every rest one may want; a node that never comes back must not overflow a float


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one trial request is out


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    failures_to_open: int = 3
    first_rest_seconds: float = 30.0
    longest_rest_seconds: float = 300.0


DEFAULT_LIMITS = BreakerLimits()


@dataclass(frozen=True, slots=True)
class Breaker:
    """`openings` counts openings without a success between them; `open_until` is on the caller's clock."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    openings: int = 0
    open_until: float = 0.0

    def admits(self, now: float) -> bool:
        """May a request be sent now? An open breaker whose rest is over admits one: see `on_sent`."""
        if self.state is BreakerState.CLOSED:
            return True
        return self.state is BreakerState.OPEN and now >= self.open_until


CLOSED = Breaker()


def on_sent(breaker: Breaker, now: float) -> Breaker:
    """A request goes to the node: after the rest it is the one trial."""
    if breaker.state is BreakerState.OPEN and now >= breaker.open_until:
        return Breaker(BreakerState.HALF_OPEN, breaker.failures, breaker.openings)
    return breaker


def on_success(breaker: Breaker) -> Breaker:
    """A request ended well. A late success of one sent before the opening does not end the rest."""
    return breaker if breaker.state is BreakerState.OPEN else CLOSED


def on_failure(breaker: Breaker, now: float, limits: BreakerLimits = DEFAULT_LIMITS) -> Breaker:
    """A request failed by the node's fault."""
    if breaker.state is BreakerState.OPEN:
        return breaker  # requests that were under way when it opened: already counted in the opening
    failures = breaker.failures + 1
    if breaker.state is BreakerState.HALF_OPEN or failures >= limits.failures_to_open:
        doublings = min(breaker.openings, MOST_DOUBLINGS)
        rest = min(limits.first_rest_seconds * 2**doublings, limits.longest_rest_seconds)
        return Breaker(BreakerState.OPEN, failures, breaker.openings + 1, now + rest)
    return Breaker(BreakerState.CLOSED, failures, breaker.openings)


def on_no_verdict(breaker: Breaker, now: float) -> Breaker:
    """The request ended without telling anything about the node (client left, 4xx, busy): a trial may be repeated."""
    if breaker.state is BreakerState.HALF_OPEN:
        return Breaker(BreakerState.OPEN, breaker.failures, breaker.openings, now)
    return breaker


def on_renewed(breaker: Breaker) -> Breaker:
    """The node restarted, was replugged or moved: judge it anew."""
    return CLOSED
