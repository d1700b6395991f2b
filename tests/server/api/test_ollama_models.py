"""Ollama's API about models: lists made of probes, descriptions by a node, and what a gateway refuses."""

from __future__ import annotations

import pytest

from server.errors import NodeBroken, NodeUnreachable
from server.nodes import ModelCopy, ResidentModel
from server.registry import NodeListed, ProbeFailed
from server.version import VERSION
from tests.server.api.gateway import MODEL, ask, fleet, gateway, get, post, report, spec
from tests.server.api.scripted_backend import ScriptedBackend

KITCHEN = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2026-11-21T13:02:12.036593581Z",
    "size": 98362745,
    "digest": "fd5f44",
    "details": {"family": "llama", "parameter_size": "134.52M"},
    "capabilities": ["completion"],
}


async def test_tags_are_the_union_of_the_fleet_as_nodes_tell_it():
    registry = fleet(
        (spec("kitchen"), report(MODEL, "b:1b")), (spec("attic"), report("A:1b", MODEL)), (spec("asleep"), None)
    )
    registry.emit(NodeListed(spec("cellar"), 1.0))
    models = (await get(gateway(registry=registry).app, "/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["A:1b", "b:1b", MODEL]
    assert all({"modified_at", "size", "digest", "details"} <= set(model) for model in models)


async def test_a_nodes_own_record_is_told_unchanged():
    found = report()
    found = type(found)(found.version, (ModelCopy(MODEL, "fd5f44", 98362745, KITCHEN),))
    registry = fleet((spec("kitchen"), found))
    assert (await get(gateway(registry=registry).app, "/api/tags")).json() == {"models": [KITCHEN]}


async def test_a_silent_node_lists_nothing_and_delays_nothing():
    registry = fleet((spec("kitchen"), report(MODEL)))
    for moment in range(3):
        registry.emit(ProbeFailed(spec("kitchen").id, "no answer", 2_000.0 + moment))
    assert (await get(gateway(registry=registry).app, "/api/tags")).json() == {"models": []}
    assert (await get(gateway(registry=registry).app, "/api/ps")).json() == {"models": []}


async def test_aliases_are_listed_where_their_model_is_there():
    aliases = {"gpt-4o-mini": MODEL, "gone": "no-such:1b"}
    models = (await get(gateway(model_aliases=aliases).app, "/api/tags")).json()["models"]
    assert [model["name"] for model in models] == [MODEL, "gpt-4o-mini"]
    assert models[1]["digest"] == models[0]["digest"]


async def test_ps_names_each_model_once_with_the_nodes_that_hold_it():
    def holding(expires: str) -> ResidentModel:
        return ResidentModel(MODEL, 4096, expires, {"name": MODEL, "size_vram": 7, "expires_at": expires})

    registry = fleet(
        (spec("kitchen"), report(resident=(holding("2026-11-21T14:00:00Z"),))),
        (spec("attic"), report(resident=(holding("2026-11-21T15:00:00Z"),))),
    )
    (model,) = (await get(gateway(registry=registry).app, "/api/ps")).json()["models"]
    assert model["nodes"] == ["kitchen", "attic"]
    assert (model["expires_at"], model["size_vram"], model["context_length"]) == ("2026-11-21T15:00:00Z", 7, 4096)


@pytest.mark.parametrize("body", [{"model": MODEL}, {"name": MODEL, "model": ""}, {"model": "QWEN2.5:1.5b"}])
async def test_show_is_answered_by_a_node_that_has_it(body: dict[str, str]):
    backend = ScriptedBackend()
    registry = fleet((spec("attic"), report("other:1b")), (spec("kitchen"), report(MODEL)))
    answer = await post(gateway(registry=registry, backends={"ollama": backend}).app, "/api/show", body)
    assert answer.json()["by"] == "kitchen"
    assert backend.shown == [("kitchen", MODEL)]


async def test_show_goes_on_to_the_next_node_and_gives_up_with_a_reason():
    backend = ScriptedBackend({"a": NodeUnreachable("gone")})
    registry = fleet((spec("a"), report(MODEL)), (spec("b"), report(MODEL)))
    app = gateway(registry=registry, backends={"ollama": backend}).app
    assert (await post(app, "/api/show", {"model": MODEL})).json()["by"] == "b"
    assert (await post(app, "/api/show", {"model": MODEL, "verbose": True})).json()["all"] is True
    backend.failing["b"] = NodeBroken("died")
    answer = await post(app, "/api/show", {"model": MODEL})
    assert answer.status == 502
    assert "died" in answer.json()["error"]


async def test_show_of_an_unknown_model_is_404():
    answer = await post(gateway().app, "/api/show", {"model": "no-such-model:1b"})
    assert (answer.status, answer.json()) == (404, {"error": "model 'no-such-model:1b' not found"})


async def test_the_version_is_one_that_the_command_takes():
    told = (await get(gateway().app, "/api/version")).json()
    assert told == {"version": "0.24.0", "potluck": {"version": VERSION}}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/pull", {"model": "x"}),
        ("POST", "/api/push", {"model": "x"}),
        ("POST", "/api/create", {"model": "x"}),
        ("POST", "/api/copy", {"source": MODEL, "destination": "y"}),
        ("DELETE", "/api/delete", {"model": MODEL}),
        ("HEAD", "/api/blobs/sha256:1", b""),
        ("POST", "/api/blobs/sha256:1", b"data"),
    ],
)
async def test_what_a_gateway_cannot_do_is_refused_with_a_sentence(method: str, path: str, body: object):
    answer = await ask(gateway().app, method, path, body)
    assert answer.status == 501
    assert answer.json()["error"].startswith("a gateway keeps no models")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/api/delete", {"model": "", "name": "no-such:1b"}),
        ("POST", "/api/copy", {"source": "no-such:1b"}),
    ],
)
async def test_deleting_what_nobody_has_is_a_404_without_a_hint(method: str, path: str, body: object):
    answer = await ask(gateway().app, method, path, body)
    assert (answer.status, answer.json()) == (404, {"error": "model 'no-such:1b' not found"})
