"""POST /api/models/unload: every node that has the model, each with its own word on it."""

from __future__ import annotations

import asyncio

from server.errors import NodeRefused
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import MODEL, fleet, post, report, spec
from tests.server.api.models_stand import Stand, gpu_nodes
from tests.server.api.scripted_operations import UNLOAD


async def test_every_node_that_has_it_lets_it_go():
    unloading = {"model": "m:1b", "status": "unloading", "in_flight": 2}
    stand = Stand({("alpha", UNLOAD): unloading, ("beta", UNLOAD): {"model": "m:1b", "status": "not loaded"}})
    answer = (await stand.unload()).json()
    assert (answer["model"], answer["status"]) == ("m:1b", "unloading")
    assert answer["nodes"] == [
        {"node": "alpha", "status": "unloading", "in_flight": 2},
        {"node": "beta", "status": "not loaded"},
        {"node": "kitchen", "status": "not loaded"},
    ]
    assert [call.fields for *_, call in stand.backend.calls] == [{"keep_alive": 0}]


async def test_a_named_node_lets_it_go():
    stand = Stand()
    answer = (await post(stand.made.app, UNLOAD, {"model": MODEL, "node": "kitchen"})).json()
    assert answer == {"model": MODEL, "status": "unloaded", "nodes": [{"node": "kitchen", "status": "unloaded"}]}
    assert [name for _, name, _ in stand.backend.calls] == ["kitchen"]


async def test_one_that_fails_is_told_beside_those_that_did_it():
    stand = Stand({("alpha", UNLOAD): {"status": "unloaded"}})
    answer = await stand.unload()
    assert (answer.status, answer.json()["status"]) == (200, "unloaded")
    assert [node["status"] for node in answer.json()["nodes"]] == ["unloaded", "failed", "not loaded"]
    failing = Stand(registry=fleet(*gpu_nodes()))
    answer = await failing.unload()
    assert (answer.status, "could not unload the model: alpha" in answer.json()["error"]) == (502, True)


async def test_a_node_that_says_nonsense_spoils_nothing_for_the_others():
    stand = Stand({("alpha", UNLOAD): {"node": "beta", "status": ["?"]}, ("beta", UNLOAD): {"status": "unloaded"}})
    answer = await stand.unload()
    assert (answer.status, answer.json()["status"]) == (200, "unloaded")
    assert answer.json()["nodes"][0] == {"node": "alpha", "status": ["?"]}


async def test_a_fleet_of_failing_nodes_is_told_in_few_words():
    nodes = [(spec(f"n{number}"), report("m:1b", slots=1, gpu_node=True)) for number in range(50)]
    error = (await Stand(registry=fleet(*nodes)).unload()).json()["error"]
    assert (error.count("n2: "), error.count("n3: "), "; and 47 more nodes" in error) == (1, 0, True)


@on_clock_loop
async def test_unloading_waits_for_no_silent_node():
    stand = Stand({("alpha", UNLOAD): asyncio.Event(), ("beta", UNLOAD): {"status": "unloaded"}})
    nodes = (await stand.unload()).json()["nodes"]
    assert nodes[0] == {"node": "alpha", "status": "failed", "error": "silent for 5 s"}
    assert asyncio.get_running_loop().time() == 5.0


async def test_unloading_what_nobody_has():
    missing = NodeRefused("model 'default' not found", 404)
    stand = Stand({("alpha", UNLOAD): missing, ("beta", UNLOAD): missing})
    assert (await stand.unload(model="default")).status == 404
    stand.operations.said["beta", UNLOAD] = {"model": "m:1b", "status": "unloaded"}
    assert (await stand.unload(model="default")).json()["status"] == "unloaded", "by a name that only the node knows"
    stand.silence("kitchen", "attic")
    assert (await stand.unload(model=MODEL)).status == 503
    assert (await stand.unload(model="m:1b", stream=True)).status == 400
    phones = Stand(registry=fleet((spec("attic"), report(MODEL))))
    assert (await phones.unload(model="m:2b")).status == 404
