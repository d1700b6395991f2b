"""What the relay counts, as plain values for metrics and STATS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RelayFigures:
    """As things are at one moment; counters only grow."""

    connections: int = 0
    sessions: int = 0
    cut_sessions: int = 0
    streams: int = 0
    jobs: int = 0  # answers that are kept for who may take them up
    accepted: int = 0  # connections, ever
    turned_away: int = 0  # connections beyond a bound, or not greeted in time
    resumed: int = 0  # sessions that were come back to
    requests: Mapping[str, int] = field(default_factory=dict)  # by frame type
    sent_bytes: int = 0
    received_bytes: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)  # connections ended by a peer's fault, by its code
    failures: Mapping[str, int] = field(default_factory=dict)  # requests that ended in an ERROR, by its code


class RelayCounters:
    def __init__(self) -> None:
        self.accepted = self.turned_away = self.resumed = 0
        self.sent_bytes = self.received_bytes = 0  # of connections that are over
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
