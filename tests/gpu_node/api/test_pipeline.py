"""GET /api/pipeline/status: one device and several in the same words, devices, events, and who may read it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from gpu_node.api.access import rules_of
from gpu_node.api.pipeline import device_records
from gpu_node.pipeline_status import PipelineStatus
from gpu_node.vram import POOL, Account, Claim
from tests.gpu_node.played_pipeline import BROKEN, MB, SPLIT, played_fleet
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, Served, serving, until_true


async def status(served: Served, played: PipelineStatus | None = None) -> Any:
    runner: Any = served.host.engine.runner
    if played is not None:
        runner.pipeline = played
    reply = await served.client.get("/api/pipeline/status")
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_model_on_one_device_is_one_stage() -> None:
    async with serving() as served:
        await served.residents.reserve("session 1", "cpu", 77)
        served.script.running = 1
        told = await status(served)
        served.script.running = 0
        held = served.host.held
    model = told["models"][NAME]
    (stage,) = model["stages"]
    assert (stage["stage"], stage["device"], stage["kind"], stage["state"]) == (0, "cpu", "cpu", "running")
    assert (stage["weights_bytes"], stage["cache_bytes"]) == (held.weights_bytes, held.cache_bytes)
    assert (stage["budget_bytes"], stage["pid"], stage["layers"]) == (10**12, None, 0)
    assert (model["split"], model["pipeline"], model["state"], model["error"]) == (False, "running", "ready", None)
    assert (model["running"], model["depth"], model["plan"], model["lending"]) == (1, 1, None, None)
    (device,) = told["devices"]
    assert (device["device"], device["listed"], device["buffer_bytes"]) == ("cpu", False, 77)
    assert device["held"] == {NAME: held.total_bytes}
    assert told["events"] == []


async def test_layers_are_those_that_the_files_tell() -> None:
    async with serving() as served:
        described = served.host.description
        assert described is not None
        served.host.description = replace(described, config={"num_hidden_layers": 30})
        (stage,) = (await status(served))["models"][NAME]["stages"]
    assert (stage["first_layer"], stage["behind_layer"], stage["layers"]) == (0, 30, 30)


async def test_a_split_is_told_stage_by_stage_and_with_its_devices() -> None:
    async with serving(devices=played_fleet()) as served:
        told = await status(served, SPLIT)
    model = told["models"][NAME]
    assert (model["split"], model["pipeline"], model["epoch"], model["depth"]) == (True, "running", 2, 2)
    assert [stage["layers"] for stage in model["stages"]] == [18, 12]
    assert model["plan"]["strategy"] == "profiled" and model["picture"][0] == "DEVICE  LAYERS"
    assert model["hops"] == 1800 and model["links"][1]["sent_bytes"] == 4_000_000
    listed = [device for device in told["devices"] if device["listed"]]
    assert [(device["device"], device["state"], device["budget_bytes"]) for device in listed] == [
        ("cpu:0", "present", 220 * MB), ("cpu:1", "lost", 180 * MB), ("cpu:2", "present", 100 * MB),
    ]  # fmt: skip
    assert (listed[1]["reason"], listed[1]["losses"], listed[1]["speed"]) == ("its process ended", 1, 0.5)
    assert [event["what"] for event in told["events"]] == ["listed", "listed", "listed", "lost"]
    assert told["events"][-1] == {
        "at": 1_800_000_000.0, "device": "cpu:1", "what": "lost", "detail": "its process ended",
    }  # fmt: skip


async def test_a_split_that_cannot_run_says_why() -> None:
    async with serving() as served:
        model = (await status(served, BROKEN))["models"][NAME]
    assert (model["pipeline"], model["error"]) == ("broken", "the model does not fit: short by 0.10 GB")


async def test_a_model_that_is_loaded_tells_how_far_it_is() -> None:
    script = Script()
    script.load_gate.clear()
    async with serving(script, loaded=False) as served:
        before = (await status(served))["models"][NAME]
        waiting = asyncio.create_task(served.post("/api/generate", prompt="q", stream=False))
        await until_true(lambda: served.host.state == "loading")
        served.host.read_bytes, served.host.total_bytes = 3, 10
        during = (await status(served))["models"][NAME]
        script.load_gate.set()
        await waiting
    assert (before["state"], before["pipeline"], before["stages"]) == ("empty", None, [])
    assert (during["state"], during["stages"], during["waiting"]) == ("loading", [], 1)
    assert (during["loaded_bytes"], during["total_bytes"]) == (3, 10)


async def test_it_wants_the_key_as_other_facts_do() -> None:
    async with serving(rules=rules_of(("anna:secret",), (), ())) as served:
        refused = await served.client.get("/api/pipeline/status")
        let_in = await served.client.get("/api/pipeline/status", headers={"X-API-Key": "secret"})
    assert (refused.status_code, let_in.status_code) == (401, 200)


def test_the_account_of_all_devices_together_is_no_device() -> None:
    fleet = played_fleet()
    fleet.hold(NAME, {"cpu:0": 5})
    accounts = [Account(POOL, 9, {NAME: Claim(3, 2)}), Account("cpu", 50)]
    assert [one["device"] for one in device_records(fleet.devices, accounts)] == ["cpu:0", "cpu:1", "cpu:2"]
    told = device_records(fleet.devices, [accounts[0], accounts[1].lend("session 1", 7)])
    assert (told[0]["held"], told[-1]["device"], told[-1]["buffer_bytes"]) == ({NAME: 5}, "cpu", 7)
