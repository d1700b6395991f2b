"""What is counted, under which labels; and that docs/metrics.md says the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.breaker import Breaker, BreakerState
from server.care import Condition
from server.exchange import AskRequest, CallerId, NodeShare, RequestId, Timings, Usage
from server.metrics import MOST_CHILDREN, Metrics
from server.nodes import ModelCopy, NodeId, ProbeReport, model_key
from server.observer import RequestRecord
from server.registry import NodeCondition
from server.speeds import MOST_MODELS
from tests.server.api.gateway import MODEL, fleet, report, spec
from tests.server.api.scripted_dispatch import ScriptedDispatch

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
REQUEST = AskRequest(RequestId("r"), CallerId("ip:1"), "chat", dialect="openai")
RECORD = RequestRecord(
    request=REQUEST,
    outcome="done",
    model="Qwen2.5:1.5B",
    node="kitchen",
    attempts=3,
    nodes=(NodeShare("attic", 4, "first"), NodeShare("kitchen", 6, "raw")),
    usage=Usage(20, 10),
    timings=Timings(1.0, 300.0, 2_000.0),
    tokens_per_second=5.0,
    cache="miss",
    homecoming="home",
)


def made(registry: Any = None) -> Metrics:
    return Metrics(registry or fleet((spec(), report()), (spec("attic"), report())))


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    kind, text = metrics.exposition()
    assert kind.startswith(b"text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_a_finished_request():
    metrics = made()
    metrics.request_finished(RECORD)
    node = {"model": MODEL, "node": "kitchen"}
    assert value(metrics, "potluck_requests_total", dialect="openai", outcome="done", **node) == 1
    assert value(metrics, "potluck_request_duration_seconds_sum", **node) == 2.0
    assert value(metrics, "potluck_request_duration_seconds_bucket", le="2.5", **node) == 1
    assert value(metrics, "potluck_first_token_seconds_sum", **node) == 0.3
    assert value(metrics, "potluck_retries_total", model=MODEL) == 2
    assert value(metrics, "potluck_tokens_total", kind="prompt", **node) == 20
    assert value(metrics, "potluck_tokens_total", kind="completion", **node) == 6
    assert value(metrics, "potluck_tokens_total", kind="completion", model=MODEL, node="attic") == 4
    assert value(metrics, "potluck_cache_requests_total", outcome="miss") == 1
    assert value(metrics, "potluck_homecomings_total", outcome="home") == 1


def test_a_failed_request_has_a_code_and_no_latency():
    metrics = made()
    metrics.request_finished(replace(RECORD, outcome="failed", error_code="no_nodes", nodes=()))
    assert value(metrics, "potluck_request_failures_total", code="no_nodes") == 1
    assert not any(name == "potluck_request_duration_seconds_sum" for name, _ in samples(metrics))


@pytest.mark.parametrize("cache", ["hit", "joined"])
def test_a_shared_answer_is_no_nodes_work(cache: Any):
    metrics = made()
    metrics.request_finished(replace(RECORD, cache=cache))
    assert not any(name == "potluck_tokens_total" for name, _ in samples(metrics))
    assert value(metrics, "potluck_cache_requests_total", outcome=cache) == 1


def test_attempts():
    metrics = made()
    metrics.attempt_started(NodeId("kitchen"), MODEL)
    metrics.attempt_failed(NodeId("kitchen"), MODEL, "stalled")
    metrics.answer_resumed(NodeId("attic"), "raw")
    assert value(metrics, "potluck_attempts_total", model=MODEL, node="kitchen") == 1
    assert value(metrics, "potluck_attempt_failures_total", model=MODEL, node="kitchen", reason="stalled") == 1
    assert value(metrics, "potluck_resumed_answers_total", node="attic", way="raw") == 1


def test_no_name_from_a_request_becomes_a_label():
    metrics = made()
    for index in range(100):
        metrics.request_finished(replace(RECORD, model=f"made-up-{index}", outcome="failed", error_code="x"))
        metrics.attempt_started(NodeId(f"gone-{index}"), MODEL)
    models = {dict(labels).get("model") for _, labels in samples(metrics)}
    nodes = {dict(labels).get("node") for _, labels in samples(metrics)}
    assert models == {None, "other", MODEL}
    assert nodes == {None, "other", "kitchen", "attic"}


def test_the_number_of_series_is_bounded():
    metrics = made()
    for index in range(MOST_CHILDREN + 50):
        metrics.http_finished(f"/{index}", 200)
    assert value(metrics, "potluck_http_responses_total", route="other", status="other") == 50
    assert sum(name == "potluck_http_responses_total" for name, _ in samples(metrics)) == MOST_CHILDREN + 1


def test_a_client_that_left_first_is_499():
    metrics = made()
    metrics.http_finished("/ask", 0)
    assert value(metrics, "potluck_http_responses_total", route="/ask", status="499") == 1


def test_gauges_are_read_when_asked():
    registry = fleet((spec(), report()), (spec("attic", enabled=False), None))
    metrics = Metrics(registry)
    metrics.watch(ScriptedDispatch(), 1_234.0)
    load = registry.loads[NodeId("kitchen")]
    load.in_flight, load.tokens_per_second = 2, 9.5
    load.breaker = Breaker(BreakerState.OPEN, 3, 1, 99.0)
    assert value(metrics, "potluck_fleet_nodes", status="ready") == 1
    assert value(metrics, "potluck_fleet_nodes", status="disabled") == 1
    assert value(metrics, "potluck_breaker_state", node="kitchen", state="open") == 1
    assert value(metrics, "potluck_breaker_state", node="kitchen", state="closed") == 0
    assert value(metrics, "potluck_in_flight_requests", node="kitchen") == 2
    assert value(metrics, "potluck_generation_tokens_per_second", node="kitchen") == 9.5
    assert value(metrics, "potluck_prompt_tokens_per_second", node="kitchen") is None
    assert value(metrics, "potluck_held_conversations", node="kitchen") == 2
    assert value(metrics, "potluck_queue_limit") == 1024
    assert value(metrics, "potluck_start_time_seconds") == 1_234.0
    load.in_flight = 0
    assert value(metrics, "potluck_in_flight_requests", node="kitchen") == 0


def test_nodes_of_one_name_share_their_series_in_counters_and_gauges():
    registry = fleet((spec("a", name="phone"), report()), (spec("b", name="phone"), report()), (spec("c"), report()))
    metrics = Metrics(registry)
    metrics.watch(ScriptedDispatch(), 1.0)
    for node_id, busy in (("a", 1), ("b", 2), ("c", 4)):
        registry.loads[NodeId(node_id)].in_flight = busy
        metrics.attempt_started(NodeId(node_id), MODEL)
    registry.loads[NodeId("b")].tokens_per_second = 9.0
    registry.loads[NodeId("b")].breaker = Breaker(BreakerState.OPEN, 3, 1, 99.0)
    assert value(metrics, "potluck_attempts_total", model=MODEL, node="phone") == 2
    assert value(metrics, "potluck_in_flight_requests", node="phone") == 3
    assert value(metrics, "potluck_in_flight_requests", node="c") == 4
    assert value(metrics, "potluck_generation_tokens_per_second", node="phone") == 9.0
    assert value(metrics, "potluck_breaker_state", node="phone", state="open") == 1
    assert value(metrics, "potluck_breaker_state", node="phone", state="closed") == 1
    assert {dict(labels).get("node") for _, labels in samples(metrics)} == {None, "phone", "c"}


def test_the_speed_of_each_model_that_a_node_has_and_has_run():
    registry = fleet((spec("a", name="phone"), report()), (spec("b", name="phone"), report()), (spec("c"), report()))
    metrics = Metrics(registry)
    metrics.watch(ScriptedDispatch(), 1.0)
    for name, speed in (("a", 9.0), ("b", 3.0)):
        registry.loads[NodeId(name)].speeds.used(model_key(MODEL), 0).tokens_per_second = speed
        registry.loads[NodeId(name)].speeds.used("gone", 0).tokens_per_second = 1.0
    registry.loads[NodeId("c")].speeds.used(model_key(MODEL), 0)
    series = [labels for name, labels in samples(metrics) if name == "potluck_model_tokens_per_second"]
    assert series == [(("model", MODEL), ("node", "phone"))]
    assert value(metrics, "potluck_model_tokens_per_second", model=MODEL, node="phone") == 12.0


def test_models_without_end_make_no_series_without_end():
    names = [f"m{number}" for number in range(MOST_MODELS)]
    held = ProbeReport("0.31.1", tuple(ModelCopy(name) for name in names))
    count = MOST_CHILDREN // MOST_MODELS + 1
    registry = fleet(*[(spec(f"n{number}"), held) for number in range(count)])
    for load in registry.loads.values():
        for name in names:
            load.speeds.used(name, 0).tokens_per_second = 1.0
    metrics = Metrics(registry)
    metrics.watch(ScriptedDispatch(), 1.0)
    told = [labels for name, labels in samples(metrics) if name == "potluck_model_tokens_per_second"]
    assert len(told) == MOST_CHILDREN


def test_what_phones_tell_and_who_rests():
    registry = fleet((spec("a", name="phone"), report()), (spec("b", name="phone"), report()), (spec("c"), report()))
    metrics = Metrics(registry)
    metrics.watch(ScriptedDispatch(), 1.0, lambda: now)
    now = 10.0
    registry.emit(NodeCondition(NodeId("a"), Condition(10.0, False, 44.0, 3, at=5.0), 5.0))
    registry.emit(NodeCondition(NodeId("b"), Condition(90.0, True, 30.0, 0, at=5.0), 5.0))
    assert value(metrics, "potluck_battery_percent", node="phone") == 10.0
    assert value(metrics, "potluck_battery_charging", node="phone") == 0
    assert value(metrics, "potluck_battery_temperature_celsius", node="phone") == 44.0
    assert value(metrics, "potluck_thermal_status", node="phone") == 3
    assert value(metrics, "potluck_care_factor", node="phone") == 0.0
    assert value(metrics, "potluck_care_factor", node="c") is None
    assert value(metrics, "potluck_resting_nodes", cause="heat") == 1
    assert value(metrics, "potluck_resting_nodes", cause="battery") == 1
    now = 186.0
    for name in ("battery_percent", "battery_charging", "battery_temperature_celsius", "thermal_status", "care_factor"):
        assert value(metrics, f"potluck_{name}", node="phone") is None, "told three minutes ago"


def test_what_reached_no_node_neither_came_home_nor_to_the_cache():
    metrics = made()
    metrics.request_finished(replace(RECORD, outcome="failed", error_code="model_not_found", attempts=0, cache="off"))
    assert not any(name.startswith(("potluck_homecomings", "potluck_cache_requests")) for name, _ in samples(metrics))
    metrics.request_finished(replace(RECORD, cache="off"))
    assert value(metrics, "potluck_homecomings_total", outcome="home") == 1
    assert value(metrics, "potluck_cache_requests_total", outcome="off") == 1


@pytest.mark.parametrize("cache", ["hit", "joined"])
def test_a_shared_answer_repeats_no_attempts(cache: Any):
    metrics = made()
    metrics.request_finished(replace(RECORD, cache=cache))
    assert not any(name.startswith(("potluck_homecomings", "potluck_retries")) for name, _ in samples(metrics))


def test_the_page_lists_every_metric_with_its_labels():
    metrics = made()
    metrics.watch(ScriptedDispatch(), 1_234.0, lambda: 10.0)
    metrics.request_finished(replace(RECORD, error_code="x"))
    metrics.attempt_started(NodeId("kitchen"), MODEL)
    metrics.attempt_failed(NodeId("kitchen"), MODEL, "broken")
    metrics.answer_resumed(NodeId("attic"), "raw")
    metrics.http_finished("/ask", 200)
    metrics._fleet.emit(NodeCondition(NodeId("kitchen"), Condition(80.0, True, 30.0, 0, at=5.0), 5.0))
    metrics._fleet.loads[NodeId("kitchen")].tokens_per_second = 1.0
    metrics._fleet.loads[NodeId("kitchen")].prompt_tokens_per_second = 1.0
    metrics._fleet.loads[NodeId("kitchen")].speeds.used(model_key(MODEL), 0).tokens_per_second = 1.0
    told = {}
    for name, labels in samples(metrics):
        if name.startswith("potluck_"):
            name = re.sub(r"_(bucket|sum|count)$", "", name) if "seconds_" in name else name
            told[name] = {label for label, _ in labels} - {"le"}
    rows = re.findall(r"^\| `(potluck_\w+)` \| \w+ \|([^|]*)\|", DOCS.read_text(), re.M)
    written = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert written == told
