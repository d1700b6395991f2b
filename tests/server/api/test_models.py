"""GET /api/models and /api/gpu, POST /api/models/load and unload: who is asked, what is told, and who is at fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.breaker import Breaker, BreakerState
from server.errors import NodeBroken, NodeBusy, NodeIncapable, NodeRefused, NodeUnreachable
from server.nodes import NodeId, ResidentModel
from server.registry import ProbeFailed, Registry
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import MODEL, Answer, Call, fleet, gateway, get, post, report, spec
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import (
    GPU,
    LOAD,
    MODELS,
    UNLOAD,
    Said,
    ScriptedOperations,
    gpu,
    listed,
    loaded,
)

HUB = "Org/model"
TWO: dict[tuple[str, str], Any] = {
    ("alpha", GPU): gpu(500),
    ("alpha", MODELS): listed("m:1b"),
    ("alpha", LOAD): loaded("m:1b", device="cpu"),
    ("beta", GPU): gpu(900),
    ("beta", MODELS): listed("m:1b"),
    ("beta", LOAD): loaded("m:1b", device="cuda:0"),
}


def mixed(**changes: Any) -> Registry:
    """Two GPU nodes and two phones, one of which has the GPU nodes' model too."""
    return fleet(
        (spec("alpha", **changes), report("m:1b", slots=32, gpu_node=True)),
        (spec("beta"), report("m:1b", slots=32, gpu_node=True)),
        (spec("kitchen"), report(MODEL, "m:1b", resident=(ResidentModel(MODEL),))),
        (spec("attic"), report(MODEL)),
    )


class Stand:
    def __init__(self, said: dict[tuple[str, str], Any] | None = None, registry: Registry | None = None, **more: Any):
        self.operations = ScriptedOperations({**TWO, **(said or {})})
        self.backend = ScriptedBackend()
        self.registry = registry or mixed()
        backends: Any = {"ollama": self.backend, "openai": self.backend}
        self.made = gateway(registry=self.registry, backends=backends, operations=self.operations, **more)

    async def load(self, **body: Any) -> Answer:
        return await post(self.made.app, LOAD, {"model": "m:1b", **body})

    async def unload(self, **body: Any) -> Answer:
        return await post(self.made.app, UNLOAD, {"model": "m:1b", **body})

    def silence(self, *names: str) -> None:
        for name in names:
            for moment in range(3):
                self.registry.emit(ProbeFailed(NodeId(name), "no answer", 2_000.0 + moment))


# loading


async def test_the_fittest_node_loads_with_the_options_as_they_came():
    stand = Stand()
    answer = await stand.load(keep_alive="10m", dtype="bfloat16", kv_blocks=64, device="auto")
    assert (answer.status, answer.json()) == (200, {**loaded("m:1b", device="cuda:0"), "node": "beta"})
    sent = {"keep_alive": "10m", "dtype": "bfloat16", "kv_blocks": 64, "device": "auto", "model": "m:1b"}
    assert stand.operations.bodies == [("beta", LOAD, {**sent, "stream": True})]
    assert stand.backend.probed == ["beta"], "who asks next sees what is in memory"


async def test_a_named_node_is_asked_and_nobody_else():
    stand = Stand()
    assert (await stand.load(node="ALPHA")).json()["node"] == "alpha"
    assert stand.operations.asked == []
    assert [name for name, *_ in stand.operations.bodies] == ["alpha"]


async def test_a_node_that_is_busy_or_rests_is_passed_over():
    stand = Stand({("alpha", GPU): gpu(900)})
    stand.registry.loads[NodeId("beta")].in_flight = 2
    assert (await stand.load()).json()["node"] == "alpha"
    stand.registry.loads[NodeId("alpha")].breaker = Breaker(BreakerState.OPEN, 3, 1, open_until=62.5)
    assert (await stand.load()).json()["node"] == "beta"


async def test_the_device_that_is_asked_for_counts():
    two = {"accounts": [{"device": "cpu", "free_bytes": 90_000}, {"device": "cuda:0", "free_bytes": 700}]}
    stand = Stand({("alpha", GPU): two})
    assert (await stand.load()).json()["node"] == "alpha"
    for wish in ({"num_gpus": 1}, {"device": "cuda"}):
        assert (await stand.load(**wish)).json()["node"] == "alpha", "beta has no GPU"
    small = Stand({("alpha", GPU): {"accounts": [{"device": "cpu", "free_bytes": 1}]}})
    assert (await small.load(num_gpus=0)).json()["node"] == "beta"


async def test_a_model_that_must_be_fetched_goes_to_gpu_nodes_only():
    stand = Stand({("alpha", MODELS): listed(HUB, available=False), ("alpha", LOAD): loaded(HUB)})
    assert (await post(stand.made.app, LOAD, {"model": HUB})).json()["node"] == "beta", "it has room"
    assert (await post(stand.made.app, LOAD, {"model": HUB, "node": "alpha"})).json()["node"] == "alpha"
    stand = Stand({("beta", MODELS): listed("small", available=False), ("beta", LOAD): loaded("small")})
    assert (await post(stand.made.app, LOAD, {"model": "small"})).json()["node"] == "beta", "alpha does not know it"


async def test_an_alias_stands_for_its_model_also_where_nobody_has_it_yet():
    stand = Stand(model_aliases={"best": HUB, "any": "auto"})
    await post(stand.made.app, LOAD, {"model": "Best"})
    assert stand.operations.bodies[0][2]["model"] == HUB
    assert (await post(stand.made.app, LOAD, {"model": "any"})).status == 400


async def test_the_next_fittest_is_asked_when_a_node_refuses():
    stand = Stand({("beta", LOAD): NodeBusy("no room beside x")}, fleet(*_gpu_nodes()))
    assert (await stand.load()).json()["node"] == "alpha"
    assert [name for name, *_ in stand.operations.bodies] == ["beta", "alpha"]


@pytest.mark.parametrize(
    ("errors", "status", "word"),
    [
        ((NodeBusy("no room"), NodeRefused("no GPU", 400)), 503, "beta: no room; alpha: no GPU"),
        ((NodeRefused("no GPU", 400), NodeBusy("no room")), 400, "beta: no GPU; alpha: no room"),
        ((NodeRefused("in use", 409), NodeBusy("no room")), 409, "beta: in use"),
        ((NodeRefused("model 'm:1b' not found", 404), NodeBusy("full")), 404, "model 'm:1b' not found"),
        ((NodeRefused("404 page not found", 404), NodeBusy("full")), 502, "could not load the model: beta: 404 page"),
        ((NodeIncapable("not here", 501), NodeBusy("full")), 501, "beta: not here"),
        ((NodeBroken("beta:1 answered 500: bad file"), NodeBusy("full")), 502, "bad file"),
        ((NodeUnreachable("gone"), NodeBusy("full")), 502, "could not load the model: beta: gone"),
    ],
)
async def test_what_no_node_would_do_is_told_in_their_words(errors: tuple[Said, Said], status: int, word: str):
    stand = Stand({("beta", LOAD): errors[0], ("alpha", LOAD): errors[1]}, fleet(*_gpu_nodes()))
    answer = await stand.load()
    assert answer.status == status
    assert word in answer.json()["error"]


def _gpu_nodes() -> list[Any]:
    return [(spec(name), report("m:1b", slots=32, gpu_node=True)) for name in ("alpha", "beta")]


async def test_a_stream_passes_the_nodes_progress_on():
    lines = [{"model": "m:1b", "status": "fetching", "completed": 5, "total": 9}, loaded("m:1b")]
    stand = Stand({("alpha", LOAD): lines})
    answer = await stand.load(node="alpha", stream=True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.lines() == [{**line, "node": "alpha"} for line in lines]


async def test_a_stream_tells_when_another_node_is_tried_and_when_none_is_left():
    lines = [{"model": "m:1b", "status": "loading"}, {"error": "out of memory"}]
    stand = Stand({("beta", LOAD): lines}, fleet(*_gpu_nodes()))
    progress, turn, last = (await stand.load(stream=True)).lines()
    assert (progress["node"], progress["status"]) == ("beta", "loading")
    assert (turn["node"], turn["status"]) == ("alpha", "trying another node")
    assert turn["reason"] == "beta: 10.0.0.7:11434 failed: out of memory"
    assert (last["node"], last["status"]) == ("alpha", "success")
    answer = await Stand({("beta", LOAD): lines}).load(stream=True, node="beta")
    assert answer.status == 200
    assert "out of memory" in answer.lines()[-1]["error"]


async def test_a_stream_that_cannot_begin_is_a_status():
    stand = Stand({("alpha", LOAD): NodeBusy("no room")})
    answer = await stand.load(node="alpha", stream=True)
    assert (answer.status, answer.json()) == (503, {"error": "alpha: no room"})


async def test_a_node_that_hangs_up_before_the_end_has_failed():
    stand = Stand({("alpha", LOAD): [{"model": "m:1b", "status": "loading"}]})
    answer = await stand.load(node="alpha")
    assert (answer.status, "ended before" in answer.json()["error"]) == (502, True)


async def test_a_client_that_leaves_ends_the_loading():
    stand = Stand({("alpha", LOAD): [{"model": "m:1b", "status": "loading"}, asyncio.Event()]})
    call = Call("POST", LOAD, {"model": "m:1b", "node": "alpha", "stream": True})
    running = asyncio.create_task(call.run(stand.made.app))
    await call.told.wait()
    assert stand.operations.open == 1
    call.gone.set()
    await running
    assert stand.operations.open == 0


# loading on phones


async def test_a_phone_loads_by_an_empty_prompt():
    stand = Stand()
    answer = await post(stand.made.app, LOAD, {"model": MODEL, "node": "attic", "keep_alive": "1h"})
    told = answer.json()
    assert (told["model"], told["node"], told["status"]) == (MODEL, "attic", "success")
    ((_, name, call),) = stand.backend.calls
    assert (name, call.operation, call.model, call.prompt, call.fields) == (
        "attic",
        "generate",
        MODEL,
        "",
        {"keep_alive": "1h"},
    )


async def test_a_phone_is_the_fittest_where_only_phones_have_the_model():
    stand = Stand()
    assert (await post(stand.made.app, LOAD, {"model": MODEL})).json()["node"] == "kitchen", "it holds the model"
    stand.backend.failing["kitchen"] = NodeBroken("no memory")
    assert (await post(stand.made.app, LOAD, {"model": MODEL})).json()["node"] == "attic"


async def test_options_of_gpu_nodes_are_not_lost_on_a_phone():
    stand = Stand()
    answer = await stand.load(node="kitchen", dtype="float16")
    assert (answer.status, "takes no 'dtype'" in answer.json()["error"]) == (400, True)
    answer = await post(stand.made.app, LOAD, {"model": MODEL, "dtype": "float16"})
    assert (answer.status, "no node that could load this" in answer.json()["error"]) == (503, True)
    assert stand.backend.calls == []


class SlowPhone(ScriptedBackend):
    async def stream(self, *call: Any) -> Any:
        await asyncio.sleep(2.5)
        async for batch in super().stream(*call):
            yield batch


@on_clock_loop
async def test_the_time_passes_while_a_phone_loads():
    stand = Stand()
    backends: Any = {"ollama": SlowPhone()}
    made = gateway(registry=stand.registry, backends=backends, operations=stand.operations)
    lines = (await post(made.app, LOAD, {"model": MODEL, "node": "attic", "stream": True})).lines()
    assert [(line["status"], line.get("elapsed_seconds")) for line in lines] == [
        ("loading", 1.0),
        ("loading", 2.0),
        ("success", None),
    ]
    assert lines[-1]["load_seconds"] == 2.5


# wishes that no node gets


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "", "node": "alpha"}, 400, "'model' is required"),
        ({"model": "auto"}, 400, "must name one model"),
        ({"model": 5}, 400, "'model' must be text"),
        ({"node": "alfa"}, 404, "did you mean alpha?"),
        ({"num_gpus": -1}, 400, "num_gpus"),
        ({"device": "tpu"}, 400, "device"),
        ({"keep_alive": "soon"}, 400, "keep_alive"),
        ({"stream": 1}, 400, "stream"),
        ({"model": "no-such"}, 404, "model 'no-such' not found"),
        ({"model": "m:2b"}, 404, "did you mean m:1b?"),
        ({"model": "m:1b", "node": "attic"}, 404, "not found"),
    ],
)
async def test_mistakes(body: dict[str, Any], status: int, word: str):
    stand = Stand()
    answer = await stand.load(**body)
    assert (answer.status, word in answer.json()["error"]) == (status, True), answer.body
    assert stand.operations.bodies == []


async def test_a_node_that_is_away_or_may_not_or_cannot():
    stand = Stand(registry=mixed(models=("other:1b",)))
    answer = await stand.load(node="alpha")
    assert (answer.status, "serve other models only" in answer.json()["error"]) == (400, True)
    stand.silence("beta")
    answer = await stand.load(node="beta")
    assert (answer.status, answer.json()["error"]) == (503, "node 'beta' is silent: no answer")
    server = Stand(registry=fleet((spec("server", kind="openai"), report("m:1b"))))
    assert (await server.load(node="server")).status == 501
    assert (await server.load()).status == 503


# unloading


async def test_every_node_that_has_it_lets_it_go():
    unloading = {"model": "m:1b", "status": "unloading", "in_flight": 2}
    stand = Stand({("alpha", UNLOAD): unloading, ("beta", UNLOAD): NodeRefused("model 'm:1b' not found", 404)})
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
    failing = Stand(registry=fleet(*_gpu_nodes()))
    answer = await failing.unload()
    assert (answer.status, "could not unload the model: alpha" in answer.json()["error"]) == (502, True)


@on_clock_loop
async def test_unloading_waits_for_no_silent_node():
    stand = Stand({("alpha", UNLOAD): asyncio.Event(), ("beta", UNLOAD): {"status": "unloaded"}})
    nodes = (await stand.unload()).json()["nodes"]
    assert nodes[0] == {"node": "alpha", "status": "failed", "error": "silent for 5 s"}
    assert asyncio.get_running_loop().time() == 5.0


async def test_unloading_what_nobody_has():
    stand = Stand()
    assert (await post(stand.made.app, UNLOAD, {"model": "m:2b"})).status == 404
    stand.silence("kitchen", "attic")
    assert (await post(stand.made.app, UNLOAD, {"model": MODEL})).status == 503
    assert (await post(stand.made.app, UNLOAD, {"model": MODEL, "stream": True})).status == 400


# lists


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


@pytest.mark.parametrize(("method", "path"), [("GET", MODELS), ("GET", GPU), ("POST", LOAD), ("POST", UNLOAD)])
async def test_a_key_is_needed_where_there_are_keys(method: str, path: str):
    stand = Stand(api_keys="anna:s3cret")
    call = await Call(method, path, {"model": "m:1b"}).run(stand.made.app)
    assert call.status == 401
    assert (stand.operations.asked, stand.operations.bodies) == ([], [])
