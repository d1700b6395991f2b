from __future__ import annotations

import asyncio
import threading

from gpu_node.api.access import rules_of
from gpu_node.errors import ModelError
from tests.gpu_node.scripted import ScriptedRunner
from tests.gpu_node.serving import serving, until_true


async def test_people_and_the_ollama_command_get_a_line_of_text() -> None:
    async with serving() as served:
        head, get = await served.client.head("/"), await served.client.get("/")
    assert (head.status_code, head.text) == (200, "")
    assert get.text == "Potluck GPU node is running"
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_ready_from_the_first_load_on() -> None:
    async with serving(loaded=False) as served:
        before = await served.client.get("/ready")
        await served.post("/api/generate")
        ready = await served.client.get("/ready")
        await served.post("/api/generate", keep_alive=0)
        idle = await served.client.get("/ready")
        health = (await served.client.get("/health")).json()
    assert (before.status_code, ready.status_code, idle.status_code) == (503, 200, 200)
    assert (health["status"], health["loaded"]) == ("idle", False)


async def test_a_load_that_failed_is_told_everywhere() -> None:
    async with serving(loaded=False) as served:
        served.host.engine._load = fail
        reply = await served.post("/api/generate", prompt="q")
        health = (await served.client.get("/health")).json()
        ready = await served.client.get("/ready")
    assert (reply.status_code, reply.json()["error"]) == (500, "the disk is gone")
    assert (health["status"], health["error"]) == ("failed", "the disk is gone")
    assert (ready.status_code, ready.json()["error"]) == (503, "the disk is gone")


def fail() -> ScriptedRunner:
    raise ModelError("the disk is gone")


async def test_requests_wait_while_the_model_loads() -> None:
    gate = threading.Event()
    runner = ScriptedRunner()

    def slow() -> ScriptedRunner:
        gate.wait(5)
        return runner

    async with serving(runner, loaded=False) as served:
        served.host.engine._load = slow
        waiting = asyncio.create_task(served.post("/api/generate", prompt="q", stream=False))
        await until_true(lambda: served.host.engine.state == "loading")
        health = (await served.client.get("/health")).json()
        live = await served.client.get("/live")
        gate.set()
        assert (await waiting).json()["load_duration"] > 0
    assert (health["status"], live.status_code) == ("loading", 200)


async def test_only_live_is_open_without_a_key() -> None:
    async with serving(rules=rules_of(("anna:secret",), (), ())) as served:
        paths = ("/", "/live", "/ready", "/health", "/api/tags", "/api/nothing")
        statuses = {path: (await served.client.get(path)).status_code for path in paths}
        refused = await served.client.get("/health")
        let_in = await served.client.get("/health", headers={"Authorization": "Bearer secret"})
    assert statuses == {path: 200 if path == "/live" else 401 for path in paths}
    assert refused.headers["www-authenticate"] == "Bearer"
    assert let_in.status_code == 200
