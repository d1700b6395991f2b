"""/health, /live, /ready, /api/nodes, /api/queue/status, /metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from server.breaker import Breaker, BreakerState
from server.care import Condition
from server.nodes import NodeId, NodeStatus
from server.phones_file import FleetFileState
from server.registry import NodeCondition, ProbeFailed
from server.version import VERSION
from tests.server.api.gateway import MODEL, fleet, gateway, get, report, spec

KITCHEN = NodeId("kitchen")


async def test_health_tells_the_whole_and_each_node():
    registry = fleet((spec(tags=("old",), weight=None), report()))
    load = registry.loads[KITCHEN]
    load.in_flight, load.answered, load.failed = 1, 5, 2
    load.tokens_per_second, load.prompt_tokens_per_second, load.first_token_seconds = 9.96, 80.04, 1.23456
    shown = load.speeds.used(MODEL, 0)
    shown.tokens_per_second, shown.prompt_tokens_per_second = 12.34, 99.99
    load.speeds.used("gone", 0).tokens_per_second = 1.0
    load.last_error = "cut"
    answer = await get(gateway(registry=registry).app, "/health")
    told = answer.json()
    (node,) = told.pop("nodes")
    assert told.pop("uptime_s") > 0
    assert told == {
        "status": "ok",
        "version": VERSION,
        "draining": False,
        "fleet_file": {"path": "phones.json", "loaded_at": "1970-01-01T00:16:40Z", "error": None},
        "embedded": None,
        "adb": None,
        "queue": {"waiting": 0, "limit": 1024, "callers": {}, "oldest_s": None},
        "cache": {"enabled": True, "entries": 0, "bytes": 0, "hits": 0, "misses": 0, "joined": 0},
    }
    assert node == {
        "id": "kitchen",
        "name": "kitchen",
        "kind": "ollama",
        "address": "10.0.0.7:11434",
        "origin": "file",
        "status": "ready",
        "since": "1970-01-01T00:16:41Z",
        "breaker": "closed",
        "breaker_open_for_s": None,
        "version": "0.24.0",
        "models": [MODEL],
        "resident": [],
        "held_conversations": 2,
        "in_flight": 1,
        "slots": 1,
        "reported_slots": 1,
        "gpu_node": False,
        "tokens_per_second": 10.0,
        "prompt_tokens_per_second": 80.0,
        "first_token_s": 1.235,
        "model_speeds": {MODEL: {"tokens_per_second": 12.3, "prompt_tokens_per_second": 100.0, "first_token_s": None}},
        "weight": "auto",
        "last_resort": False,
        "answered": 5,
        "failed": 2,
        "last_error": "cut",
        "tags": ["old"],
        "condition": None,
        "care_factor": 1.0,
        "resting": None,
        "resting_since": None,
    }
    assert (await get(gateway(registry=registry).app, "/api/nodes")).json()["nodes"] == [node]


async def test_an_open_breaker_says_for_how_long():
    registry = fleet()
    registry.loads[KITCHEN].breaker = Breaker(BreakerState.OPEN, 3, 1, open_until=62.5)
    app = gateway(registry=registry).app  # its clock says 50
    told = (await get(app, "/health")).json()
    assert told["status"] == "unavailable"
    assert (told["nodes"][0]["breaker"], told["nodes"][0]["breaker_open_for_s"]) == ("open", 12.5)
    assert (await get(app, "/ready")).status == 503


async def test_a_phone_that_rests_says_why_and_is_still_better_than_none():
    registry = fleet()
    app = gateway(registry=registry).app
    registry.emit(NodeCondition(KITCHEN, Condition(81.0, True, 44.04, 2, at=2_000.0), 2_000.0))
    told = (await get(app, "/health")).json()
    assert told["status"] == "degraded"
    (node,) = told["nodes"]
    assert (node["status"], node["care_factor"]) == ("ready", 0.0)
    assert node["resting"] == "hot: 44.0 °C, rests until 39 °C, thermal status moderate, rests until light"
    assert node["resting_since"] == "1970-01-01T00:33:20Z"
    assert node["condition"] == {
        "battery_percent": 81.0,
        "charging": True,
        "temperature_c": 44.04,
        "thermal_status": "moderate",
        "overheated": False,
        "told_at": "1970-01-01T00:33:20Z",
    }
    assert (await get(app, "/ready")).status == 200


async def test_a_phone_that_cannot_bear_any_work_is_no_phone():
    registry = fleet()
    app = gateway(registry=registry).app
    registry.emit(NodeCondition(KITCHEN, Condition(thermal_status=5, at=2_000.0), 2_000.0))
    assert (await get(app, "/health")).json()["status"] == "unavailable"
    assert (await get(app, "/ready")).status == 503


async def test_one_node_missing_is_degraded_and_all_is_unavailable():
    registry = fleet((spec(), report()), (spec("attic"), report()))
    app = gateway(registry=registry).app
    assert (await get(app, "/health")).json()["status"] == "ok"
    for name, status in (("attic", "degraded"), ("kitchen", "unavailable")):
        for moment in range(3):
            registry.emit(ProbeFailed(NodeId(name), "no answer", 2_000.0 + moment))
        answer = await get(app, "/health")
        assert (answer.status, answer.json()["status"]) == (200, status)
    attic = next(node for node in answer.json()["nodes"] if node["name"] == "attic")
    assert (attic["status"], attic["last_error"]) == (NodeStatus.SILENT, "no answer")


async def test_a_node_that_is_switched_off_is_not_missing():
    registry = fleet((spec(), report()), (spec("attic", enabled=False), None))
    assert (await get(gateway(registry=registry).app, "/health")).json()["status"] == "ok"


async def test_an_empty_fleet_is_unavailable_but_alive():
    from server.registry import Registry

    app = gateway(registry=Registry()).app
    assert (await get(app, "/health")).json()["status"] == "unavailable"
    assert (await get(app, "/live")).status == 200
    ready = await get(app, "/ready")
    assert (ready.status, ready.json()["ready"]) == (503, False)


async def test_ready_with_one_usable_node():
    ready = await get(gateway().app, "/ready")
    assert (ready.status, ready.json()) == (200, {"ready": True, "usable_nodes": 1, "draining": False})


async def test_a_broken_fleet_file_is_told_with_line_and_column():
    state = FleetFileState(Path("phones.json"), error="expected ','", line=3, column=5, loaded_at=1_000.0)
    told = (await get(gateway(fleet_file=state).app, "/health")).json()
    assert told["fleet_file"]["error"] == "line 3, column 5: expected ','"
    assert told["status"] == "degraded"
    placeless = replace(state, line=None, column=None)
    assert (await get(gateway(fleet_file=placeless).app, "/health")).json()["fleet_file"]["error"] == "expected ','"


async def test_the_queue_by_itself():
    assert (await get(gateway().app, "/api/queue/status")).json()["limit"] == 1024


async def test_metrics_are_text_for_prometheus():
    answer = await get(gateway().app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.body == b"# no metrics\n"


async def test_no_key_is_told():
    app = gateway(api_keys="anna:s3cret").app
    for path in ("/health", "/api/nodes", "/metrics", "/live"):
        answer = await get(app, path, headers={"X-API-Key": "s3cret"})
        assert answer.status == 200
        assert b"s3cret" not in answer.body and b"anna" not in answer.body
