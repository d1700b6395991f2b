"""What the node counts, for Prometheus: read from the engines when somebody asks, and HTTP responses as they go.

Label values come from this node's models and routes, never from a request, so that no caller can make series. A model
that left and came back counts from zero, as Prometheus expects of counters. `docs/gpu-node.md` lists all names.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gpu_node import __version__
from gpu_node.engine.stats import EngineStats, Histogram
from gpu_node.host import ModelHost
from gpu_node.pipeline_metrics import pipeline_families
from gpu_node.relay_metrics import RelayView, relay_families
from gpu_node.vram import Account

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "potluck_node_"
LABELS = ["model"]

_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("prompt_tokens", "Prompt tokens of requests", lambda s: s.prompt_tokens),
    (
        "prefix_hit_tokens",
        "Prompt tokens found in the cache, so not computed",
        lambda s: s.cached_prompt_tokens,
    ),
    ("output_tokens", "Tokens written", lambda s: s.output_tokens),
    ("steps", "Forward passes", lambda s: s.steps),
    ("step_tokens", "Tokens computed in them, drafts and recomputation included", lambda s: s.step_tokens),
    ("preemptions", "Requests that were set back to make room, to be computed anew", lambda s: s.preemptions),
    ("draft_tokens", "Tokens guessed ahead", lambda s: s.drafts),
    ("accepted_draft_tokens", "Guesses that were right", lambda s: s.accepted_drafts),
    ("requests_done", "Requests answered to their end", lambda s: s.done),
    ("requests_failed", "Requests that ended in an error of their own or of the engine", lambda s: s.failed),
    ("requests_cancelled", "Requests whose client left", lambda s: s.cancelled),
    ("engine_restarts", "Deaths of the engine's thread that were mended", lambda s: s.restarts),
    ("out_of_memory", "Steps that did not fit into the device's memory", lambda s: s.out_of_memory),
)
_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("running_requests", "Sequences that are being computed", lambda s: s.running),
    ("waiting_requests", "Sequences that wait for their turn", lambda s: s.waiting),
    ("max_running_requests", "Sequences that may be computed at once", lambda s: s.max_running),
    ("last_batch_size", "Sequences in the last forward pass", lambda s: s.last_batch),
    ("tokens_per_second", "Tokens written per second, recently", lambda s: s.tokens_per_second),
    ("used_blocks", "Blocks of the key-value cache that requests hold", lambda s: s.blocks_used),
    ("free_blocks", "Blocks that can be taken, cached ones included", lambda s: s.blocks_free),
    ("cached_blocks", "Free blocks that still hold a prefix", lambda s: s.blocks_cached),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineStats], Histogram]], ...] = (
    ("first_token_seconds", "From a request's arrival to its first token", lambda s: s.first_token),
    ("between_tokens_seconds", "Between two tokens of an answer", lambda s: s.between_tokens),
    ("batch_size", "Sequences in a forward pass", lambda s: s.batch_size),
)


class NodeMetrics:
    def __init__(
        self,
        hosts: Callable[[], Sequence[ModelHost]],
        accounts: Callable[[], Sequence[Account]],
        routes: Container[str],
        relay: Callable[[], RelayView | None] = lambda: None,
        device_events: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`device_events` counts what happened to devices, by its word."""
        self._hosts, self._accounts, self._routes, self._relay = hosts, accounts, routes, relay
        self._device_events = device_events
        self._registry = CollectorRegistry()
        self._responses = Counter(
            f"{PREFIX}http_responses",
            "HTTP responses; 499 means that the client left before one began",
            ["route", "status"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def count_response(self, path: str, status: int) -> None:
        self._responses.labels(path if path in self._routes else "other", str(status)).inc()

    def families(self) -> Iterator[Metric]:
        """Everything that is told under our own name."""
        yield from self.collect()
        yield from self._responses.collect()

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        stats = {host.name: host.engine.stats() for host in self._hosts()}
        for name, text, read in _COUNTERS:
            yield _filled(CounterMetricFamily(PREFIX + name, text, labels=LABELS), stats, read)
        for name, text, read in _GAUGES:
            yield _filled(GaugeMetricFamily(PREFIX + name, text, labels=LABELS), stats, read)
        for name, text, histogram_of in _HISTOGRAMS:
            family = HistogramMetricFamily(PREFIX + name, text, labels=LABELS)
            for model, one in stats.items():
                histogram = histogram_of(one)
                family.add_metric([model], buckets_of(histogram), histogram.total)
            yield family
        yield from self._memory()
        split = [told for host in self._hosts() if (told := host.pipeline) is not None]
        yield from pipeline_families(split, self._device_events())
        yield from relay_families(self._relay())
        loaded = GaugeMetricFamily(f"{PREFIX}model_loaded", "1 while the model is in memory", labels=LABELS)
        for host in self._hosts():
            loaded.add_metric([host.name], float(host.engine.runner is not None))
        yield loaded
        yield InfoMetricFamily(f"{PREFIX}build", "The node's version", value={"version": __version__})

    def _memory(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            f"{PREFIX}model_memory_bytes", "What a model holds", labels=["model", "device", "kind"]
        )
        of_device = {
            name: GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["device"])
            for name, text in (
                ("memory_budget_bytes", "What models and tensors of clients may hold together"),
                ("memory_free_bytes", "Of this, what nobody holds"),
                ("buffer_memory_bytes", "What tensors of relay clients hold"),
            )
        }
        for account in self._accounts():
            of_device["memory_budget_bytes"].add_metric([account.device], account.budget_bytes)
            of_device["memory_free_bytes"].add_metric([account.device], account.free_bytes)
            of_device["buffer_memory_bytes"].add_metric([account.device], sum(account.buffers.values()))
            for model, claim in account.claims.items():
                held.add_metric([model, account.device, "weights"], claim.weights_bytes)
                held.add_metric([model, account.device, "cache"], claim.cache_bytes)
        yield held
        yield from of_device.values()


def buckets_of(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, histogram.counts), strict=True))


def _filled(family: Any, stats: dict[str, EngineStats], read: Callable[[EngineStats], float]) -> Metric:
    for model, one in stats.items():
        family.add_metric([model], read(one))
    assert isinstance(family, Metric)
    return family
