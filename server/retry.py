"""How often a request may be tried anew: its own budget for one outage, and the fleet's. Pure, `now` is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.nodes import NodeId

BUDGET_WINDOW_SECONDS = 10.0  # as Finagle's: long enough for a burst, short enough to follow the traffic


@dataclass(slots=True)
class Outage:
    """The failures since the last delivered token. Each node is tried once in it, and only so many in a row."""

    limit: int
    tried: frozenset[NodeId] = frozenset()
    failures: int = 0

    def failed(self, node_id: NodeId) -> None:
        self.tried |= {node_id}
        self.failures += 1

    def delivered(self, node_id: NodeId) -> None:
        """Tokens reached the client: should this node fail as well, that is a new outage."""
        if self.tried or self.failures:  # nodes that could not go on were tried as well, though they did not fail
            self.tried = frozenset()
            self.failures = 0

    @property
    def exhausted(self) -> bool:
        return self.failures >= self.limit


@dataclass(slots=True)
class RetryBudget:
    """Retries of the whole fleet as a share of its recent requests, so that failures cannot become a storm.

    After Finagle's RetryBudget and Envoy's retry_budget: every request deposits `ratio`, each retry withdraws one,
    deposits fade after the window; `floor` retries per window are always there.
    """

    ratio: float
    floor: int
    balance: float = 0.0
    floor_left: float = field(init=False)
    since: float = 0.0

    def __post_init__(self) -> None:
        self.floor_left = float(self.floor)

    def deposit(self, now: float) -> None:
        self._fade(now)
        self.balance += self.ratio

    def withdraw(self, now: float) -> bool:
        """Take one retry out; False when there is none left."""
        self._fade(now)
        if self.balance >= 1.0:
            self.balance -= 1.0
            return True
        if self.floor_left >= 1.0:
            self.floor_left -= 1.0
            return True
        return False

    def _fade(self, now: float) -> None:
        share = min(1.0, max(0.0, now - self.since) / BUDGET_WINDOW_SECONDS)
        self.since = now
        self.balance *= 1.0 - share
        self.floor_left = min(float(self.floor), self.floor_left + share * self.floor)
