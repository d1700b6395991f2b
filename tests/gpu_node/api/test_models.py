"""Loading and unloading by name: options honoured or refused, progress, who makes room; and raw inference."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from gpu_node.engine.sequence import InferenceRequest
from gpu_node.errors import ModelError
from gpu_node.load_wish import LoadWish
from gpu_node.vram import Account
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, WISH, Fleet, Model, Served, serving, until_true

CACHE = 1024 * 2
SMALL, OTHER = Model("small"), Model("other")
ONE = SMALL.parameters * 2 + CACHE


def fleet_of(room_for: int = 9, **more: Any) -> Fleet:
    return Fleet([SMALL, OTHER], budget=ONE * room_for, wish=replace(WISH, kv_bytes=CACHE), **more)


async def load(served: Served, **body: Any) -> Any:
    return (await served.client.post("/api/models/load", json=body)).json()


async def test_a_model_is_loaded_told_about_and_unloaded() -> None:
    async with serving(fleet=fleet_of()) as served:
        answer = await load(served, model="other", keep_alive="1h")
        listed = (await served.client.get("/api/models")).json()["models"]
        gone = (await served.client.post("/api/models/unload", json={"model": "other"})).json()
        again = (await served.client.post("/api/models/unload", json={"model": "other"})).json()
        unknown = await served.client.post("/api/models/unload", json={"model": "nothing"})
    assert (answer["model"], answer["status"], answer["device"]) == ("other", "success", "cpu")
    assert (answer["memory_bytes"], answer["cache"]["blocks"]) == (ONE, 1024)
    assert answer["idle_seconds_left"] == 3600
    assert answer["summary"] == {"weights": "full"}
    assert {one["name"]: (one["state"], one["main"]) for one in listed} == {
        "small": ("ready", True), "other": ("ready", False),
    }  # fmt: skip
    assert (gone["status"], again["status"], unknown.status_code) == ("unloaded", "not loaded", 404)


async def test_without_options_a_loaded_model_stays_as_it_is_and_with_some_the_others_are_the_settings() -> None:
    fleet = fleet_of()
    async with serving(fleet=fleet) as served:
        for body in ({"dtype": "float32"}, {}, {"context": 64}):
            assert (await load(served, model="other", **body))["status"] == "success"
    wishes = fleet.files["other"].wishes
    assert [(wish.dtype, wish.context) for wish in wishes] == [("float32", 0), ("auto", 64)]


async def test_options_reach_the_loading() -> None:
    body = {
        "device": "cpu", "num_gpus": 0, "dtype": "float32", "weights": "int8", "kernels": "torch", "threads": 3,
        "context": 128, "block_tokens": 32, "kv_memory": "1MB", "max_running": 5, "step_tokens": 64,
        "mixed_step_tokens": 32, "speculation": "off",
    }  # fmt: skip
    fleet = Fleet([SMALL, OTHER], budget=10**9)
    async with serving(fleet=fleet) as served:
        answer = await load(served, model="other", **body)
    assert (answer["context_length"], answer["slots"]) == (128, 5)
    assert fleet.files["other"].wishes == [
        LoadWish("cpu", "float32", "int8", "torch", 3, 128, 32, 10**6, 0, 5, 64, 32, "off")
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"num_gpus": 2}, "num_gpus must be 0 or 1"),
        ({"num_gpus": 1}, "no GPU that it may use"),
        ({"device": "cuda"}, "no GPU that it may use"),
        ({"num_gpus": 0, "device": "cuda"}, "contradicts"),
        ({"block_tokens": 7}, "block_tokens must be one of"),
        ({"kv_memory": "much"}, "is no size"),
        ({"kv_memory": 1, "kv_blocks": 1}, "not both"),
        ({"weights": "int2"}, 'field "weights" is wrong'),
        ({"max_running": 0}, 'field "max_running" is wrong'),
        ({"colour": "red"}, 'field "colour" is unknown'),
        ({"contxt": 1}, "did you mean context?"),
        ({"model": "/etc/passwd"}, "paths are not loaded on request"),
        ({"model": "../x"}, "paths are not loaded on request"),
        ({"keep_alive": "soon"}, "is no duration"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_its_reason(body: dict[str, Any], told: str) -> None:
    async with serving(fleet=fleet_of()) as served:
        reply = await served.client.post("/api/models/load", json={"model": "other", **body})
    assert (reply.status_code, told in reply.json()["error"]) == (400, True), reply.text


async def test_a_gpu_is_taken_where_there_is_one() -> None:
    fleet = fleet_of(accounts=(Account("cpu", 10**9), Account("cuda", 10**9)))
    async with serving(fleet=fleet) as served:
        answer = await load(served, model="other", num_gpus=1)
        accounts = (await served.client.get("/api/gpu")).json()["accounts"]
    assert answer["device"] == "cuda:0"
    assert [list(account["models"]) for account in accounts] == [["small"], ["other"]]


async def test_progress_is_told_until_the_end() -> None:
    fleet = fleet_of()
    fleet.script("other").load_gate.clear()
    async with serving(fleet=fleet, real=True) as served:
        body = {"model": "other", "stream": True}
        async with served.client.stream("POST", "/api/models/load", json=body) as reply:
            lines = reply.aiter_lines()
            first = json.loads(await anext(lines))
            fleet.script("other").load_gate.set()
            last = [json.loads(line) async for line in lines][-1]
    assert (first["status"], first["model"]) == ("loading", "other")
    assert last["status"] == "success"


async def test_a_loading_that_fails_is_the_last_line_or_a_status() -> None:
    fleet = fleet_of()
    script = fleet.script("other")
    script.load_errors = [ModelError("broken weights")] * 2
    async with serving(fleet=fleet, real=True) as served:
        whole = await served.client.post("/api/models/load", json={"model": "other"})
        script.load_gate.clear()
        async with served.client.stream("POST", "/api/models/load", json={"model": "other", "stream": True}) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            script.load_gate.set()
            last = [json.loads(line) async for line in lines][-1]
    assert (whole.status_code, whole.json()["error"]) == (500, "broken weights")
    assert last == {"error": "broken weights"}


async def test_no_room_names_who_holds_what_and_an_idle_model_makes_room() -> None:
    script = Script(hold_at=0)
    fleet = fleet_of(room_for=1)
    fleet.scripts["small"] = script
    async with serving(fleet=fleet) as served:
        running = asyncio.create_task(served.client.post("/api/generate", json={"model": "small", "prompt": "q"}))
        await until_true(lambda: script.running == 1)
        refused = await served.client.post("/api/models/load", json={"model": "other"})
        script.go_on.set()
        await running
        answer = await load(served, model="other")
        resident = (await served.client.get("/api/ps")).json()["models"]
    assert refused.status_code == 503
    assert "no room for other" in refused.json()["error"] and "small holds" in refused.json()["error"]
    assert answer["status"] == "success"
    assert [one["name"] for one in resident] == ["other"]


async def test_a_model_in_use_is_unloaded_afterwards() -> None:
    script = Script(hold_at=0)
    fleet = fleet_of()
    fleet.scripts["small"] = script
    async with serving(fleet=fleet) as served:
        running = asyncio.create_task(served.client.post("/api/generate", json={"model": "small", "prompt": "q"}))
        await until_true(lambda: script.running == 1)
        told = (await served.client.post("/api/models/unload", json={"model": "small"})).json()
        script.go_on.set()
        assert (await running).status_code == 200
        await until_true(lambda: not served.residents.loaded)
    assert told == {"model": "small", "status": "unloading", "in_flight": 1}


async def test_a_request_loads_what_it_names_and_both_dialects_list_it() -> None:
    async with serving(fleet=fleet_of()) as served:
        reply = await served.client.post("/v1/completions", json={"model": "OTHER", "prompt": "p"})
        tags = (await served.client.get("/api/tags")).json()["models"]
        models = (await served.client.get("/v1/models")).json()["data"]
        resident = (await served.client.get("/api/ps")).json()["models"]
    assert reply.json()["model"] == "OTHER"
    assert [tag["name"] for tag in tags] == [model["id"] for model in models] == ["small", "other"]
    assert [one["name"] for one in resident] == ["small", "other"]


async def test_inference_gives_bytes_and_says_what_they_are() -> None:
    async with serving() as served:
        every = await served.post("/api/infer", ids=[3, 4], output="hidden")
        last = await served.post("/api/infer", ids=[3, 4], last_only=True)
    assert struct.unpack("<4f", every.content) == (3.0, 6.0, 4.0, 8.0)
    assert struct.unpack("<2f", last.content) == (4.0, 8.0)
    told = {name: value for name, value in every.headers.items() if name.startswith("x-potluck-")}
    assert told == {
        "x-potluck-model": NAME, "x-potluck-output": "hidden", "x-potluck-rows": "2", "x-potluck-columns": "2",
        "x-potluck-dtype": "float32", "x-potluck-byte-order": "little",
    }  # fmt: skip
    assert every.headers["content-type"] == "application/octet-stream"
    assert served.script.inferences == [
        InferenceRequest((3, 4), "hidden", False, "127.0.0.1"), InferenceRequest((3, 4), "logits", True, "127.0.0.1"),
    ]  # fmt: skip


async def test_inference_beyond_the_context_is_refused() -> None:
    async with serving() as served:
        reply = await served.post("/api/infer", ids=[3] * 4097, last_only=True)
        assert served.script.inferences == []
    assert (reply.status_code, reply.json()["error"]) == (400, "the input length exceeds the context length")


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": "x"}, {"ids": [1.5]}, {"ids": [1], "output": "text"}])
async def test_inference_without_sense_is_refused(body: dict[str, Any]) -> None:
    async with serving() as served:
        reply = await served.post("/api/infer", **body)
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
