"""What operators see: states, failures, devices, queues; and what is open without a key."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_node.api.access import rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.device_profiles import FoundDevice
from gpu_node.errors import ModelError
from gpu_node.probing import ProbeRun, Probing
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, SLOTS, Fleet, ScriptedCatalog, Served, serving, until_true


async def get(served: Served, path: str) -> Any:
    reply = await served.client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_people_and_the_ollama_command_get_a_line_of_text() -> None:
    async with serving(real=True) as served:
        head, line = await served.client.head("/"), await served.client.get("/")
    assert (head.status_code, head.text) == (200, "")
    assert line.text == "Potluck GPU node is running"
    assert head.headers["content-length"] == line.headers["content-length"]


async def test_ready_from_the_first_load_on() -> None:
    async with serving(loaded=False) as served:
        before = await served.client.get("/ready")
        await served.post("/api/generate")
        ready = await served.client.get("/ready")
        await served.post("/api/generate", keep_alive=0)
        idle = await served.client.get("/ready")
        health = await get(served, "/health")
    assert (before.status_code, ready.status_code, idle.status_code) == (503, 200, 200)
    assert (health["status"], health["loaded"]) == ("idle", False)


async def test_a_load_that_failed_is_told_everywhere_and_tried_again() -> None:
    script = Script()
    script.load_errors = [ModelError("the disk is gone")]
    async with serving(script, loaded=False) as served:
        reply = await served.post("/api/generate", prompt="q")
        health = await get(served, "/health")
        ready = await served.client.get("/ready")
        again = await served.post("/api/generate", prompt="q", stream=False)
        healed = await get(served, "/health")
    assert (reply.status_code, reply.json()["error"]) == (500, "the disk is gone")
    assert (health["status"], health["error"]) == ("failed", "the disk is gone")
    assert (ready.status_code, ready.json()["error"]) == (503, "the disk is gone")
    assert (again.status_code, healed["status"], healed["error"]) == (200, "ok", None)


async def test_requests_wait_while_the_model_loads() -> None:
    script = Script()
    script.load_gate.clear()
    async with serving(script, loaded=False) as served:
        waiting = asyncio.create_task(served.post("/api/generate", prompt="q", stream=False))
        await until_true(lambda: served.host.state == "loading")
        health = await get(served, "/health")
        live = await served.client.get("/live")
        script.load_gate.set()
        assert (await waiting).json()["load_duration"] > 0
    assert (health["status"], health["waiting"], live.status_code) == ("loading", 1, 200)


async def test_deaths_of_the_engine_are_told() -> None:
    async with serving() as served:
        served.script.counters.restarts, served.script.counters.out_of_memory = 2, 1
        health = await get(served, "/health")
    assert health["engine"] == {"state": "ready", "restarts": 2, "out_of_memory": 1, "failed": 0}


async def test_only_live_is_open_without_a_key() -> None:
    async with serving(rules=rules_of(("anna:secret",), (), ())) as served:
        paths = ("/", "/live", "/ready", "/health", "/metrics", "/v1/models", "/api/tags", "/api/gpu", "/api/nothing")
        statuses = {path: (await served.client.get(path)).status_code for path in paths}
        refused = await served.client.get("/health")
        openai = await served.client.get("/v1/models")
        let_in = await served.client.get("/health", headers={"Authorization": "Bearer secret"})
    assert statuses == {path: 200 if path == "/live" else 401 for path in paths}
    assert refused.headers["www-authenticate"] == "Bearer"
    assert openai.json()["error"]["code"] == "invalid_api_key"
    assert let_in.status_code == 200


async def test_the_queue_tells_who_runs_and_who_waits() -> None:
    script = Script(hold_at=0)
    async with serving(script) as served:
        tasks = [asyncio.create_task(served.post("/api/generate", prompt="q")) for _ in range(SLOTS + 1)]
        await until_true(lambda: script.running == SLOTS and script.waiting == 1)
        queue = await get(served, "/api/queue/status")
        script.go_on.set()
        await asyncio.gather(*tasks)
    assert (queue["waiting"], queue["in_flight"]) == (1, SLOTS + 1)
    assert queue["models"][NAME] == {
        "running": SLOTS, "waiting": 1, "in_flight": SLOTS + 1, "slots": SLOTS, "limit": 8, "state": "ready",
    }  # fmt: skip


async def test_the_batcher_tells_its_counts() -> None:
    async with serving() as served:
        counters = served.script.counters
        counters.count_step(rows=3, tokens=40)
        counters.first_token.observe(0.2)
        counters.first_token.observe(1000.0)
        batcher = (await get(served, "/api/batcher/stats"))["models"][NAME]
    assert (batcher["steps"], batcher["step_tokens"], batcher["last_batch"], batcher["mean_batch"]) == (1, 40, 3, 3.0)
    assert batcher["first_token_seconds"] == {"count": 2, "mean": 500.1, "p50": 0.25, "p90": None, "p99": None}
    assert set(batcher["blocks"]) == {"used", "free", "cached", "block_tokens"}


async def test_devices_and_who_holds_what() -> None:
    async with serving() as served:
        await served.residents.reserve("session 1", "cpu", 77)
        found = await get(served, "/api/gpu")
        system = await get(served, "/api/system")
        pipeline = await get(served, "/api/pipeline/status")
    (account,) = found["accounts"]
    held = account["models"][NAME]
    assert found["gpus"][0]["name"] == "a GPU"
    assert account["used_bytes"] == held["weights_bytes"] + held["cache_bytes"] + 77
    assert account["buffers"] == {"session 1": 77}
    assert system["machine"]["usable_cores"] == 2
    assert pipeline["models"][NAME]["stages"][0]["device"] == "cpu"


async def test_devices_are_measured_when_somebody_asks(tmp_path: Path) -> None:
    script = "import json; print(json.dumps({'device': %r})); print('{\"done\": true}')"
    cpu = FoundDevice("cpu", 0, "a processor", "AMD", "", "", 1000, 400, 2e10, 1e11, 3e-6, 2)
    run = ProbeRun((sys.executable, "-S", "-c", script % asdict(cpu)))
    service = Service(Fleet().residents(), ScriptedCatalog(()), gpus=lambda: (), probing=Probing(tmp_path / "d", run))
    transport = httpx.ASGITransport(build_app(service, rules_of((), (), ())))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/api/gpu")).json()["measured"] is None
        measured = (await client.get("/api/gpu?measure=true")).json()["measured"]
        assert measured == {"devices": [asdict(cpu)], "left_out": []}
        assert (await client.get("/api/gpu")).json()["measured"] == measured
    await service.residents.close()


@pytest.mark.parametrize("path", ["/api/nothing", "/v1/nothing"])
async def test_unknown_paths_have_the_shape_of_their_dialect(path: str) -> None:
    async with serving() as served:
        reply = await served.client.get(path)
        wrong = await served.client.get("/v1/completions")
    assert reply.status_code == 404
    assert (reply.text == "404 page not found") == path.startswith("/api")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "invalid_request_error"
