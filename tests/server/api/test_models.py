"""GET /api/models and /api/gpu: what all nodes told, and who did not; keys."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import NodeBusy
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import MODEL, Call, get
from tests.server.api.models_stand import Stand
from tests.server.api.scripted_operations import GPU, LOAD, MODELS, UNLOAD, gpu, listed


async def test_models_with_the_nodes_that_have_them():
    beta = listed("m:1b", state="ready", size=1)
    beta["models"].append({"name": "more:1b", "state": "empty", "available": False, "node": "liar"})
    told = (await get(Stand({("beta", MODELS): beta}).made.app, MODELS)).json()
    assert told["silent"] == []
    assert [(model["name"], model["loaded"]) for model in told["models"]] == [
        ("m:1b", True),
        ("more:1b", False),
        (MODEL, True),
    ]
    ours, more, phones = told["models"]
    assert [(copy["node"], copy["loaded"], copy["size_bytes"]) for copy in ours["nodes"]] == [
        ("kitchen", False, 1000),
        ("alpha", False, 600),
        ("beta", True, 1),
    ]
    assert more["nodes"] == [{"node": "beta", "loaded": False, "state": "empty", "available": False}]
    assert phones["nodes"][0] == {
        "node": "kitchen",
        "loaded": True,
        "available": True,
        "state": "ready",
        "size_bytes": 1000,
        "digest": f"digest-{MODEL}",
    }


async def test_a_gpu_node_that_does_not_answer_is_named_and_its_models_are_those_last_known():
    stand = Stand({("alpha", MODELS): NodeBusy("stopping"), ("beta", MODELS): {"models": "many"}})
    told = (await get(stand.made.app, MODELS)).json()
    assert told["silent"] == [
        {"node": "alpha", "id": "alpha", "error": "busy: stopping"},
        {"node": "beta", "id": "beta", "error": "it lists its models in an unknown way"},
    ]
    assert [copy["node"] for copy in told["models"][0]["nodes"]] == ["kitchen", "alpha", "beta"]
    stand.silence("alpha")
    told = (await get(stand.made.app, MODELS)).json()
    assert told["silent"][0] == {"node": "alpha", "id": "alpha", "error": "silent: no answer"}
    assert [copy["node"] for copy in told["models"][0]["nodes"]] == ["kitchen", "beta"], "it can serve nothing"


async def test_devices_and_accounts_of_all_gpu_nodes():
    card = {"index": 0, "name": "a GPU", "total_bytes": 24_000}
    stand = Stand({("alpha", GPU): gpu(500, gpus=[card])})
    told = (await get(stand.made.app, GPU)).json()
    assert told["gpus"] == [{"node": "alpha", **card}]
    assert [(one["node"], one["device"], one["free_bytes"]) for one in told["accounts"]] == [
        ("alpha", "cpu", 500),
        ("beta", "cpu", 900),
    ]
    assert told["silent"] == []
    assert {name for name, _ in stand.operations.asked} == {"alpha", "beta"}


@on_clock_loop
async def test_a_hanging_node_delays_nobody_for_long_and_silent_ones_are_named():
    stand = Stand({("alpha", GPU): asyncio.Event()})
    stand.silence("beta", "kitchen")
    told = (await get(stand.made.app, GPU)).json()
    assert asyncio.get_running_loop().time() == 2.0
    assert [(one["node"], one["error"]) for one in told["silent"]] == [
        ("alpha", "silent: no answer within 2 s"),
        ("beta", "silent: no answer"),
    ]
    assert (told["gpus"], told["accounts"]) == ([], [])


async def test_a_node_that_tells_rubbish_is_named():
    told = (await get(Stand({("alpha", GPU): {"gpus": [1], "accounts": []}}).made.app, GPU)).json()
    assert told["silent"][0]["error"] == "it tells its devices in an unknown way"


async def test_a_node_that_calls_itself_by_anothers_name_is_told_by_its_own():
    stand = Stand({("alpha", GPU): {"gpus": [{"node": "beta", "index": 0}], "accounts": []}})
    told = (await get(stand.made.app, GPU)).json()
    assert told["gpus"] == [{"node": "alpha", "index": 0}]


@pytest.mark.parametrize(("method", "path"), [("GET", MODELS), ("GET", GPU), ("POST", LOAD), ("POST", UNLOAD)])
async def test_a_key_is_needed_where_there_are_keys(method: str, path: str):
    stand = Stand(api_keys="anna:s3cret")
    call = await Call(method, path, {"model": "m:1b"}).run(stand.made.app)
    assert call.status == 401
    assert (stand.operations.asked, stand.operations.bodies) == ([], [])
