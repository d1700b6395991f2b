"""When a session is over, and who of those without a connection goes first: pure rules.

Times are seconds on the sessions' clock. Must not know connections, memory or timers.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_node.relay.call import SessionState


@dataclass(frozen=True, slots=True)
class SessionTerms:
    idle_seconds: float = 300.0  # connected, nothing under way: then everything is given back
    grace_seconds: float = 30.0  # for coming back after the connection was cut
    most: int = 1024  # each has a few records, whether it holds memory or not


@dataclass(frozen=True, slots=True)
class Presence:
    """`since`: the last sign of work while connected, else the moment of the cut."""

    connected: bool
    busy: bool
    since: float

    @property
    def state(self) -> SessionState:
        if not self.connected:
            return "cut"
        return "live" if self.busy else "idle"


def over_at(presence: Presence, terms: SessionTerms) -> float | None:
    """None: not as long as things are so. Answers that go on after a cut do not lengthen the grace."""
    if not presence.connected:
        return presence.since + terms.grace_seconds
    return None if presence.busy else presence.since + terms.idle_seconds
