"""A split model's figures for Prometheus: stages, links, plans, lending, and what happened to the devices.

Invariants: every family is told, also where nothing is split; label values are this node's models and devices, stages'
numbers and words of the code, never a client's, so that no caller can make series. Counters of stages and links begin
anew with each plan, as Prometheus expects of counters. Must not know HTTP or the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gpu_node.pipeline_record import lent_by_device
from gpu_node.pipeline_status import LendingStatus, PipelineStatus, StageStatus

PREFIX = "potluck_node_"
STAGE = ("model", "stage", "device")

_STAGE_GAUGES: tuple[tuple[str, str, Callable[[StageStatus], float | None]], ...] = (
    ("stage_layers", "Layers that a stage computes", lambda s: s.layers),
    ("stage_weights_bytes", "Weights that it holds", lambda s: s.weights_bytes),
    ("stage_cache_bytes", "Its key-value cache", lambda s: s.cache_bytes),
    ("stage_budget_bytes", "What it may hold, where that is stated", lambda s: s.budget_bytes),
    ("stage_blocks", "Blocks of its cache that lie with it", lambda s: s.blocks),
    ("stage_far_blocks", "Blocks of its cache that lie elsewhere", lambda s: s.far_blocks),
    ("stage_hop_seconds", "What its links take of a step", lambda s: _seconds(s.hop_microseconds)),
)
_STAGE_COUNTERS: tuple[tuple[str, str, Callable[[StageStatus], float]], ...] = (
    ("stage_steps", "Steps that a stage has computed", lambda s: s.steps),
    ("stage_busy_seconds", "Time that this took", lambda s: s.busy_seconds),
)
_GAUGES: tuple[tuple[str, str, Callable[[PipelineStatus], float | None]], ...] = (
    ("pipeline_epoch", "Which plan it is, counted from the first", lambda p: p.epoch),
    ("pipeline_depth", "Steps that are under way at once at most", lambda p: p.depth),
    ("pipeline_broken", "1 while no plan fits", lambda p: float(p.state == "broken")),
    ("pipeline_predicted_step_seconds", "What the plan says of a decode step", lambda p: p.predicted_step_seconds),
    ("pipeline_measured_step_seconds", "What one took lately", lambda p: p.measured_step_seconds),
    ("pipeline_recovery_seconds", "From the last loss of a device to the next step", lambda p: p.last_recovery_seconds),
)
_COUNTERS: tuple[tuple[str, str, Callable[[PipelineStatus], float]], ...] = (
    ("pipeline_steps", "Steps of split models", lambda p: p.steps),
    ("pipeline_hops", "Messages on the links of the ring: n + 1 a step of n stages", lambda p: p.hops),
    ("pipeline_replans", "How often a plan was thought over, the first time included", lambda p: p.replans),
)
_LENDING_GAUGES: tuple[tuple[str, str, Callable[[LendingStatus], float]], ...] = (
    ("leases", "Leases of cache blocks between devices", lambda one: len(one.leases)),
    ("host_cache_bytes", "Reclaimed blocks that host memory holds", lambda one: one.host_bytes),
)
_LENDING_COUNTERS: tuple[tuple[str, str, Callable[[LendingStatus], float]], ...] = (
    ("leases_granted", "Leases that were granted", lambda one: one.granted),
    ("leases_reclaimed", "Leases that their lender took back", lambda one: one.reclaimed),
    ("leases_refused", "Requests for memory that no device would lend", lambda one: one.refused),
    ("moved_blocks", "Cache blocks that were moved to another place", lambda one: one.moved_blocks),
    ("recomputed_blocks", "Cache blocks that were given up, to be computed anew", lambda one: one.recomputed_blocks),
)


def pipeline_families(pipelines: Sequence[PipelineStatus], events: Mapping[str, int]) -> Iterator[Metric]:
    """`events` counts what happened to devices, by its word."""
    yield from _stages(pipelines)
    for name, text, read in _GAUGES:
        yield _filled(_gauge(name, text, "model"), (((one.model,), read(one)) for one in pipelines))
    for name, text, count in _COUNTERS:
        yield _filled(_counter(name, text, "model"), (((one.model,), count(one)) for one in pipelines))
    yield from _links(pipelines)
    yield from _lending(pipelines)
    yield _filled(_counter("device_events", "What happened to devices", "event"), _by_word(events))


def _stages(pipelines: Sequence[PipelineStatus]) -> Iterator[Metric]:
    stages = [((one.model, str(stage.number), stage.device), stage) for one in pipelines for stage in one.stages]
    for name, text, read in _STAGE_GAUGES:
        yield _filled(_gauge(name, text, *STAGE), ((labels, read(stage)) for labels, stage in stages))
    for name, text, count in _STAGE_COUNTERS:
        yield _filled(_counter(name, text, *STAGE), ((labels, count(stage)) for labels, stage in stages))


def _links(pipelines: Sequence[PipelineStatus]) -> Iterator[Metric]:
    links = [((one.model, link.source, link.target), link) for one in pipelines for link in one.links]
    ends = ("model", "source", "target")
    sent = _counter("link_sent_bytes", "Bytes of tensors that a link between stages has carried", *ends)
    yield _filled(sent, ((labels, link.sent_bytes) for labels, link in links))
    frames = _counter("link_frames", "Frames that it has carried", *ends)
    yield _filled(frames, ((labels, link.frames) for labels, link in links))
    dropped = _counter("link_dropped_frames", "Frames of an older plan that nobody took", *ends)
    yield _filled(dropped, ((labels, link.dropped_frames) for labels, link in links))


def _lending(pipelines: Sequence[PipelineStatus]) -> Iterator[Metric]:
    lendings = [(one.model, one.lending) for one in pipelines if one.lending is not None]
    lent = ((model, lender, size) for model, one in lendings for lender, size in lent_by_device(one.leases).items())
    family = _gauge("lent_bytes", "Memory that a device lends for a model's cache", "model", "device")
    yield _filled(family, (((model, lender), size) for model, lender, size in lent))
    for name, text, read in _LENDING_GAUGES:
        yield _filled(_gauge(name, text, "model"), (((model,), read(one)) for model, one in lendings))
    for name, text, read in _LENDING_COUNTERS:
        yield _filled(_counter(name, text, "model"), (((model,), read(one)) for model, one in lendings))


def _by_word(events: Mapping[str, int]) -> Iterator[tuple[Sequence[str], float]]:
    return (((word,), times) for word, times in sorted(events.items()))


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, labels=labels)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[Sequence[str], float | None]]
) -> Metric:
    """What is not known is left out."""
    for labels, value in values:
        if value is not None:
            family.add_metric(labels, value)
    return family


def _seconds(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
