"""The relay's figures for Prometheus.

Invariants: every family is told, also where there is no relay; label values are the protocol's own words, never a
client's. Must not know the relay's insides, only what it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gpu_node.relay.call import SessionState
from gpu_node.relay.counters import RelayFigures
from gpu_node.relay.sessions import ClientSession, Sessions

PREFIX = "potluck_node_relay_"
STATES: tuple[SessionState, ...] = ("live", "idle", "cut")

_GAUGES: tuple[tuple[str, str, Callable[[RelayFigures], int]], ...] = (
    ("connections", "Relay clients that are connected", lambda f: f.connections),
    ("streams", "Requests of relay clients that are being answered", lambda f: f.streams),
)
_COUNTERS: tuple[tuple[str, str, Callable[[RelayFigures], int]], ...] = (
    ("accepted_connections", "Relay clients that have connected", lambda f: f.accepted),
    ("refused_connections", "Of these, turned away: too many, too slow to greet, no TLS", lambda f: f.turned_away),
    ("resumed_sessions", "Sessions whose client came back to them", lambda f: f.resumed),
    ("received_bytes", "Bytes from relay clients", lambda f: f.received_bytes),
    ("sent_bytes", "Bytes to relay clients", lambda f: f.sent_bytes),
)
_COUNTED: tuple[tuple[str, str, str, Callable[[RelayFigures], Mapping[str, int]]], ...] = (
    ("faults", "Connections that ended for a fault of the client", "code", lambda f: f.faults),
    ("requests", "Requests of relay clients", "type", lambda f: f.requests),
    ("failures", "Of these, answered with an error", "code", lambda f: f.failures),
)


class RelayView(Protocol):
    """What the relay tells of itself."""

    @property
    def figures(self) -> RelayFigures: ...

    @property
    def sessions(self) -> Sessions: ...


def relay_families(relay: RelayView | None) -> Iterator[Metric]:
    figures = relay.figures if relay is not None else RelayFigures()
    for name, text, read in _GAUGES:
        yield GaugeMetricFamily(PREFIX + name, text, value=read(figures))
    for name, text, read in _COUNTERS:
        yield CounterMetricFamily(PREFIX + name, text, value=read(figures))
    for name, text, label, counted in _COUNTED:
        family = CounterMetricFamily(PREFIX + name, text, labels=[label])
        for word, count in counted(figures).items():
            family.add_metric([word.lower()], count)
        yield family
    yield from _of_sessions(relay.sessions.all if relay is not None else ())


def _of_sessions(sessions: Sequence[ClientSession]) -> Iterator[Metric]:
    states = Counter(session.state for session in sessions)
    family = GaugeMetricFamily(PREFIX + "sessions", "Sessions of relay clients", labels=["state"])
    for state in STATES:
        family.add_metric([state], states[state])
    yield family
    count = sum(len(session.buffers) for session in sessions)
    yield GaugeMetricFamily(PREFIX + "buffers", "Tensors that sessions keep here", value=count)
    held = sum(session.buffers.bytes_held for session in sessions)
    yield GaugeMetricFamily(PREFIX + "buffer_bytes", "Memory that sessions hold for their tensors", value=held)
