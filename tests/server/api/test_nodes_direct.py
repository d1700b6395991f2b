"""Calls past the queue: loading and dropping models on every node, describing and rendering by one of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.backends.base import Call
from server.errors import NodeBroken, NodeRefused
from server.nodes import NodeSpec, ResidentModel
from server.patience import Patience
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import MODEL, fleet, gateway, get, post, report, spec
from tests.server.api.scripted_backend import ScriptedBackend

HI = [{"role": "user", "content": "hi"}]


def three_phones() -> Any:
    return fleet(
        (spec("kitchen"), report(MODEL, "other:1b")),
        (spec("attic"), report("QWEN2.5:1.5B")),
        (spec("cellar"), report("other:1b")),
        (spec("asleep"), None),
    )


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/generate", {"prompt": "", "options": None, "system": "", "template": "", "suffix": ""}, "load"),
        ("/api/generate", {"prompt": "", "keep_alive": "10m0s"}, "load"),
        ("/api/generate", {"prompt": "", "keep_alive": "0s"}, "unload"),
        ("/api/generate", {"keep_alive": 0}, "unload"),
        ("/api/chat", {"messages": []}, "load"),
        ("/api/chat", {"messages": [], "keep_alive": 0}, "unload"),
        ("/api/chat", {}, "load"),
    ],
)
async def test_an_empty_prompt_reaches_every_node_that_has_the_model(path: str, body: dict[str, Any], reason: str):
    backend = ScriptedBackend()
    made = gateway(registry=three_phones(), backends={"ollama": backend})
    answer = await post(made.app, path, {"model": "qwen2.5:1.5b", **body})
    told = answer.json()
    assert (told["done"], told["done_reason"], told["model"]) == (True, reason, "qwen2.5:1.5b")
    assert told["message"] == {"role": "assistant", "content": ""} if path == "/api/chat" else told["response"] == ""
    assert answer.headers["content-type"].startswith("application/json")
    assert {(name, call.model) for _, name, call in backend.calls} == {
        ("kitchen", MODEL),
        ("attic", "QWEN2.5:1.5B"),
    }
    kept = {"keep_alive": body["keep_alive"]} if "keep_alive" in body else {}
    assert all(call.fields == kept for *_, call in backend.calls)
    assert made.answer().asked == []


async def test_what_is_in_memory_is_seen_at_once():
    backend = ScriptedBackend()
    backend.report = report(MODEL, resident=(ResidentModel(MODEL),))
    registry = fleet((spec("kitchen"), report(MODEL)))
    made = gateway(registry=registry, backends={"ollama": backend})
    await post(made.app, "/api/generate", {"model": MODEL})
    assert [model["name"] for model in (await get(made.app, "/api/ps")).json()["models"]] == [MODEL]
    backend.report = None  # a node that does not answer the look was loaded all the same
    assert (await post(made.app, "/api/generate", {"model": MODEL})).status == 200


async def test_loading_auto_loads_each_nodes_own_model():
    backend = ScriptedBackend()
    made = gateway(registry=three_phones(), backends={"ollama": backend})
    assert (await post(made.app, "/api/generate", {"model": "auto", "prompt": ""})).status == 200
    assert {name: call.model for _, name, call in backend.calls} == {
        "kitchen": MODEL,
        "attic": "QWEN2.5:1.5B",
        "cellar": "other:1b",
    }


async def test_loading_succeeds_where_one_node_did_it():
    backend = ScriptedBackend({"attic": NodeBroken("no memory")})
    made = gateway(registry=three_phones(), backends={"ollama": backend})
    assert (await post(made.app, "/api/generate", {"model": MODEL})).status == 200
    backend.failing["kitchen"] = NodeBroken("no memory")
    answer = await post(made.app, "/api/generate", {"model": MODEL})
    assert answer.status == 502
    assert "no memory" in answer.json()["error"]


async def test_nodes_that_load_nothing_are_left_alone():
    backend = ScriptedBackend()
    made = gateway(registry=fleet((spec("server", kind="openai"), report(MODEL))), backends={"openai": backend})
    assert (await post(made.app, "/api/generate", {"model": MODEL})).json()["done_reason"] == "load"
    assert backend.calls == []


async def test_loading_what_nobody_has():
    made = gateway(registry=three_phones(), backends={"ollama": ScriptedBackend()})
    assert (await post(made.app, "/api/generate", {"model": "no-such:1b"})).status == 404
    away = gateway(registry=fleet((spec("asleep"), None)), backends={"ollama": ScriptedBackend()})
    answer = await post(away.app, "/api/generate", {"model": "auto"})
    assert answer.status == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", {}), ("/api/generate", {"model": "", "prompt": ""}), ("/api/generate", {"keep_alive": 0}),
     ("/api/chat", {"messages": []}), ("/api/chat", {"keep_alive": 0}), ("/api/show", {})],
)  # fmt: skip
async def test_what_would_reach_every_model_needs_a_name(path: str, body: dict[str, Any]):
    backend = ScriptedBackend()
    answer = await post(gateway(registry=three_phones(), backends={"ollama": backend}).app, path, body)
    assert (answer.status, answer.json()) == (400, {"error": "model is required"})
    assert not backend.calls
    assert not backend.shown


class OneHangs(ScriptedBackend):
    """A node that takes the call and says nothing."""

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> Any:
        if spec.name in self.failing:
            self.calls.append(("hangs", spec.name, call))
            await asyncio.Event().wait()
        async for batch in super().stream(spec, call, patience):
            yield batch


@on_clock_loop
async def test_dropping_a_model_waits_for_no_silent_node():
    backend = OneHangs({"attic": NodeBroken("hangs")})
    made = gateway(registry=three_phones(), backends={"ollama": backend})
    answer = await post(made.app, "/api/generate", {"model": MODEL, "keep_alive": 0})
    assert (answer.status, answer.json()["done_reason"]) == (200, "unload")
    assert asyncio.get_running_loop().time() == 5.0
    backend.failing["kitchen"] = NodeBroken("hangs")
    answer = await post(made.app, "/api/generate", {"model": MODEL, "keep_alive": 0})
    assert (answer.status, "silent for 5 s" in answer.json()["error"]) == (502, True)


# rendering


async def test_a_prompt_is_rendered_by_a_node_that_can():
    backend = ScriptedBackend()
    old = spec("old"), report(MODEL, renders=False)
    made = gateway(registry=fleet(old, (spec("new"), report(MODEL))), backends={"ollama": backend})
    body = {"model": MODEL, "messages": HI, "_debug_render_only": True}
    told = (await post(made.app, "/api/chat", body)).json()
    assert told["_debug_info"] == {"rendered_template": "<new> hi"}
    assert (told["message"], told["done"]) == ({"role": "", "content": ""}, False)
    assert made.answer().asked == []
    made = gateway(registry=fleet(old), backends={"ollama": backend})
    assert (await post(made.app, "/api/chat", body)).status == 503


async def test_a_node_that_refuses_is_believed_and_one_that_fails_is_not():
    two = fleet((spec("a"), report(MODEL)), (spec("b"), report(MODEL)))
    body = {"model": MODEL, "prompt": "hi", "_debug_render_only": True}
    refusing = ScriptedBackend({"a": NodeRefused("too long", 400)})
    answer = await post(gateway(registry=two, backends={"ollama": refusing}).app, "/api/generate", body)
    assert (answer.status, answer.json()["error"]) == (400, "too long")
    failing_one = ScriptedBackend({"a": NodeBroken("died")})
    answer = await post(gateway(registry=two, backends={"ollama": failing_one}).app, "/api/generate", body)
    assert answer.json()["_debug_info"]["rendered_template"] == "<b> hi"
