"""What the gateway counts, for Prometheus: an `Observer` of dispatch, and gauges read when somebody asks.

Counting costs a request a few microseconds: label children are looked up once and kept, in a bounded table. A label's
values come from the fleet, never from a request, so that no caller can make series. `docs/metrics.md` lists all names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from server.breaker import BreakerState
from server.nodes import Load, ModelKey, Node, NodeId, NodeStatus, model_key
from server.observer import RequestRecord
from server.registry import Registry
from server.version import VERSION

OTHER = "other"
# Series of one metric; a fleet of a thousand phones with two models each stays below it.
MOST_CHILDREN = 4096
# From a cached answer to a slow phone's long one.
_DURATION_BUCKETS = (0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
_FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)


class FleetFigures(Protocol):
    """What dispatch tells about the queue and the cache (see `server.dispatch.Dispatcher`)."""

    def queue_status(self) -> dict[str, Any]: ...

    def cache_status(self) -> dict[str, Any]: ...

    def held_conversations(self, node_id: str) -> int: ...


class _Children:
    """The children of one metric by label values, looked up once; a full table counts the rest as `other`."""

    __slots__ = ("_by_labels", "_metric")

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self._by_labels: dict[tuple[str, ...], Any] = {}

    def __getitem__(self, labels: tuple[str, ...]) -> Any:
        child = self._by_labels.get(labels)
        if child is None:
            if len(self._by_labels) >= MOST_CHILDREN:
                return self._metric.labels(*[OTHER] * len(labels))
            child = self._by_labels[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """Tell it what happens (`Observer`), ask it for the text (`exposition`)."""

    def __init__(self, registry: Registry) -> None:
        # the moment of creation is a second series beside each counter, which nobody looks at
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._fleet = registry
        self._models_seen: set[ModelKey] = set()  # a look through a thousand nodes is too much for every request
        self._collectors = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> _Children:
            return _Children(Counter(f"potluck_{name}", text, labels, registry=self._collectors))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> _Children:
            labels = ("model", "node")
            return _Children(Histogram(f"potluck_{name}", text, labels, registry=self._collectors, buckets=buckets))

        self._requests = counter(
            "requests", "Requests that ended, by how they ended.", "dialect", "model", "node", "outcome"
        )
        self._failures = counter("request_failures", "Requests that ended in an error, by its code.", "code")
        self._attempts = counter("attempts", "Attempts begun at a node.", "model", "node")
        self._attempt_failures = counter(
            "attempt_failures", "Attempts that failed at a node, by reason.", "model", "node", "reason"
        )
        self._retries = counter("retries", "Attempts beyond a request's first.", "model")
        self._resumed = counter("resumed_answers", "Half-told answers that went on at a node, by way.", "node", "way")
        self._durations = histogram(
            "request_duration_seconds", "From the request to the end of its answer.", _DURATION_BUCKETS
        )
        self._first_tokens = histogram(
            "first_token_seconds", "From the request to the first token.", _FIRST_TOKEN_BUCKETS
        )
        self._tokens = counter("tokens", "Tokens read and written by a node.", "kind", "model", "node")
        self._cached = counter("cache_requests", "Requests by what the answer cache said.", "outcome")
        self._homecomings = counter(
            "homecomings", "Requests by whether their conversation came back to its node.", "outcome"
        )
        self._responses = counter("http_responses", "HTTP responses by route.", "route", "status")
        ProcessCollector(registry=self._collectors)

    def watch(self, figures: FleetFigures, started_at: float, wall: Callable[[], float] = time.time) -> None:
        """From now on the gauges are read from the fleet and from these figures. Call once."""
        self._collectors.register(_Gauges(self._fleet, figures, started_at, wall))

    # Observer

    def request_finished(self, record: RequestRecord) -> None:
        model, node = self._model(record.model), record.node
        self._requests[record.request.dialect, model, node, record.outcome].inc()
        shared = record.cache in ("hit", "joined")
        if shared or record.attempts or record.cache == "miss":
            self._cached[(record.cache,)].inc()  # one that failed at the door never came to the cache
        if record.error_code is not None:
            self._failures[(record.error_code,)].inc()
        if record.outcome == "done":
            self._durations[model, node].observe(record.timings.total / 1000)
            self._first_tokens[model, node].observe(record.timings.first_token / 1000)
        if shared:
            return  # no node was asked, read or wrote anything for it
        if record.attempts:
            self._homecomings[(record.homecoming,)].inc()
        if record.attempts > 1:
            self._retries[(model,)].inc(record.attempts - 1)
        if record.usage.prompt_tokens:
            self._tokens["prompt", model, node].inc(record.usage.prompt_tokens)
        for share in record.nodes:
            self._tokens["completion", model, share.node].inc(share.tokens)

    def attempt_started(self, node: NodeId, model: str) -> None:
        self._attempts[self._model(model), self._node(node)].inc()

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None:
        self._attempt_failures[self._model(model), self._node(node), reason].inc()

    def answer_resumed(self, node: NodeId, way: str) -> None:
        self._resumed[self._node(node), way].inc()

    # the HTTP layer

    def http_finished(self, route: str, status: int) -> None:
        self._responses[route, str(status or 499)].inc()  # 499, as nginx says: the client left first

    def exposition(self) -> tuple[bytes, bytes]:
        """Content type and text. For a large fleet this takes a while: call it in a thread."""
        return CONTENT_TYPE_LATEST.encode(), generate_latest(self._collectors)

    def _model(self, name: str) -> str:
        """The name where some node has the model, else `other`: names of requests make no series."""
        key = model_key(name)
        if key in self._models_seen:
            return key
        if any(key in node.models for node in self._fleet.fleet.nodes.values()):
            self._models_seen.add(key)
            return key
        return OTHER

    def _node(self, node_id: NodeId) -> str:
        node = self._fleet.node(node_id)
        return node.name if node is not None else OTHER


class _Gauges:
    """The present state, read from the fleet at each scrape."""

    def __init__(self, registry: Registry, figures: FleetFigures, started_at: float, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._registry = registry
        self._figures = figures
        self._started_at = started_at

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("potluck_build", "The gateway's version.", {"version": VERSION})
        yield GaugeMetricFamily(
            "potluck_start_time_seconds", "When the gateway started, in Unix time.", self._started_at
        )
        nodes = by_name(self._registry)
        yield self._by_status()
        yield self._breakers(nodes)
        for name, text, read in _PER_NODE:
            yield _per_node(name, text, nodes, read)
        phones = self._believed(nodes)
        for name, text, read, combined in _PER_PHONE:
            yield _per_node(name, text, phones, read, combined)
        yield _per_model(nodes)
        yield self._resting()
        yield _per_node(
            "potluck_held_conversations",
            "Conversations whose prompt a node holds.",
            nodes,
            lambda node, _: self._figures.held_conversations(node.id),
        )
        yield from self._queue()
        yield from self._cache()

    def _believed(self, nodes: ByName) -> ByName:
        """The phones, with what is left of their conditions once too old words are forgotten."""
        now, limit = self._wall(), self._registry.care.stale_seconds
        return {
            label: [
                (replace(node, condition=node.condition.believed(now, limit)), load)
                for node, load in sharing
                if node.condition is not None
            ]
            for label, sharing in nodes.items()
        }

    def _by_status(self) -> Metric:
        family = GaugeMetricFamily("potluck_fleet_nodes", "Nodes by status.", labels=["status"])
        statuses = [node.status for node in self._registry.fleet.nodes.values()]
        for status in NodeStatus:
            family.add_metric([status], statuses.count(status))
        return family

    def _breakers(self, nodes: ByName) -> Metric:
        family = GaugeMetricFamily("potluck_breaker_state", "Breakers of a node by state.", labels=["node", "state"])
        for name, sharing in nodes.items():
            states = [load.breaker.state for _, load in sharing]
            for state in BreakerState:
                family.add_metric([name, state], states.count(state))
        return family

    def _resting(self) -> Metric:
        family = GaugeMetricFamily("potluck_resting_nodes", "Phones that rest, by the cause.", labels=["cause"])
        cares = [node.care for node in self._registry.fleet.nodes.values()]
        family.add_metric(["heat"], sum(care.hot for care in cares))
        family.add_metric(["battery"], sum(care.low for care in cares))
        return family

    def _queue(self) -> Iterator[Metric]:
        queue = self._figures.queue_status()
        for key, name, text in (
            ("waiting", "potluck_queue_waiting", "Requests that wait for a node."),
            ("limit", "potluck_queue_limit", "How many may wait before further ones are refused."),
            ("oldest_s", "potluck_queue_oldest_seconds", "How long the oldest of them has waited."),
        ):
            yield GaugeMetricFamily(name, text, queue.get(key) or 0)

    def _cache(self) -> Iterator[Metric]:
        cache = self._figures.cache_status()
        for key, name, text in (
            ("entries", "potluck_cache_entries", "Answers in the cache."),
            ("bytes", "potluck_cache_bytes", "What they take."),
        ):
            yield GaugeMetricFamily(name, text, cache.get(key) or 0)


ByName = dict[str, list[tuple[Node, Load]]]
_Reading = Callable[[Node, Load], float | None]
_PER_NODE: tuple[tuple[str, str, _Reading], ...] = (
    ("potluck_in_flight_requests", "Requests that a node is answering.", lambda _, load: load.in_flight),
    ("potluck_slots", "Requests that a node can answer at once.", lambda node, _: node.slots),
    (
        "potluck_generation_tokens_per_second",
        "Learned writing speed of a node.",
        lambda _, load: load.tokens_per_second,
    ),
    (
        "potluck_prompt_tokens_per_second",
        "Learned reading speed of a node.",
        lambda _, load: load.prompt_tokens_per_second,
    ),
)


def _told(field: str) -> _Reading:
    """One thing of what a phone told of itself."""
    return lambda node, _: getattr(node.condition, field, None)


_Combining = Callable[[list[float]], float]
# What phones tell of themselves: of those that share a name, the one that is worst off.
_PER_PHONE: tuple[tuple[str, str, _Reading, _Combining], ...] = (
    ("potluck_battery_percent", "Charge of a phone's battery.", _told("level"), min),
    ("potluck_battery_charging", "1 while a phone is charging.", _told("charging"), min),
    ("potluck_battery_temperature_celsius", "Temperature of a phone's battery.", _told("temperature_c"), max),
    ("potluck_thermal_status", "Android's thermal status, 0 (none) to 6 (shutdown).", _told("thermal_status"), max),
    (
        "potluck_care_factor",
        "Share of its work that a phone gets: 1 when it is well, 0 while it rests.",
        lambda node, _: node.care.factor if node.condition is not None and node.condition.tells_anything else None,
        min,
    ),
)


def by_name(registry: Registry) -> ByName:
    """Nodes and loads under their label: the name, as counters have it too. Nodes that share one share their series."""
    found: ByName = {}
    empty = Load()
    for node in registry.fleet.nodes.values():
        found.setdefault(node.name, []).append((node, registry.loads.get(node.id, empty)))
    return found


def _per_node(name: str, text: str, nodes: ByName, read: _Reading, combined: _Combining = sum) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["node"])
    for label, sharing in nodes.items():
        values = [value for node, load in sharing if (value := read(node, load)) is not None]
        if values:
            family.add_metric([label], combined(values))
    return family


def _per_model(nodes: ByName) -> Metric:
    """Of what a node has and has run; beyond so many series, nothing more is told."""
    text = "Learned writing speed of a node with one model."
    family = GaugeMetricFamily("potluck_model_tokens_per_second", text, labels=["model", "node"])
    found: dict[tuple[str, str], float] = {}
    for label, sharing in nodes.items():
        for node, load in sharing:
            for model, speed in list(load.speeds.by_model.items()):  # the loop goes on while this is read
                if model in node.models and speed.tokens_per_second is not None:
                    found[model, label] = found.get((model, label), 0.0) + speed.tokens_per_second
    for labels, value in islice(found.items(), MOST_CHILDREN):
        family.add_metric(labels, value)
    return family
