"""POST /api/models/load: who is asked, what is told, and who is at fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.breaker import Breaker, BreakerState
from server.errors import NodeBroken, NodeBusy, NodeIncapable, NodeRefused, NodeUnreachable
from server.nodes import NodeId
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import MODEL, Call, fleet, gateway, post, report, spec
from tests.server.api.models_stand import Stand, gpu_nodes, mixed
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import GPU, LOAD, MODELS, Said, gpu, listed, loaded

HUB = "Org/model"


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


async def test_a_model_that_must_be_fetched_goes_togpu_nodes_only():
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
    stand = Stand({("beta", LOAD): NodeBusy("no room beside x")}, fleet(*gpu_nodes()))
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
    stand = Stand({("beta", LOAD): errors[0], ("alpha", LOAD): errors[1]}, fleet(*gpu_nodes()))
    answer = await stand.load()
    assert answer.status == status
    assert word in answer.json()["error"]


async def test_a_stream_passes_the_nodes_progress_on():
    lines = [{"model": "m:1b", "status": "fetching", "completed": 5, "total": 9}, loaded("m:1b")]
    stand = Stand({("alpha", LOAD): lines})
    answer = await stand.load(node="alpha", stream=True)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.lines() == [{**line, "node": "alpha"} for line in lines]


async def test_a_stream_tells_when_another_node_is_tried_and_when_none_is_left():
    lines = [{"model": "m:1b", "status": "loading"}, {"error": "out of memory"}]
    stand = Stand({("beta", LOAD): lines}, fleet(*gpu_nodes()))
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


class OnlyEmbeds(ScriptedBackend):
    """As Ollama is with a model for embeddings."""

    async def stream(self, node: Any, call: Any, patience: Any) -> Any:
        self.failing = {node.name: NodeRefused(f'"{call.model}" does not support generate', 400)}
        if call.operation == "embed":
            self.failing = {}
        async for batch in super().stream(node, call, patience):
            yield batch


async def test_a_model_that_only_embeds_is_loaded_by_embeddings_of_nothing():
    stand, backend = Stand(), OnlyEmbeds()
    backends: Any = {"ollama": backend}
    made = gateway(registry=stand.registry, backends=backends, operations=stand.operations)
    answer = await post(made.app, LOAD, {"model": MODEL, "node": "attic", "keep_alive": "1h"})
    assert answer.json()["status"] == "success"
    calls = [(call.operation, call.model, call.fields) for _, _, call in backend.calls]
    assert calls == [
        ("generate", MODEL, {"keep_alive": "1h"}),
        ("embed", MODEL, {"keep_alive": "1h", "input": []}),
    ]


async def test_a_phone_is_the_fittest_where_only_phones_have_the_model():
    stand = Stand()
    assert (await post(stand.made.app, LOAD, {"model": MODEL})).json()["node"] == "kitchen", "it holds the model"
    stand.backend.failing["kitchen"] = NodeBroken("no memory")
    assert (await post(stand.made.app, LOAD, {"model": MODEL})).json()["node"] == "attic"


async def test_options_ofgpu_nodes_are_not_lost_on_a_phone():
    stand = Stand()
    answer = await stand.load(node="kitchen", dtype="float16")
    assert (answer.status, "takes no 'dtype'" in answer.json()["error"]) == (400, True)
    answer = await post(stand.made.app, LOAD, {"model": MODEL, "dtype": "float16"})
    assert (answer.status, "no node that could do this" in answer.json()["error"]) == (503, True)
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
        ({"keep_alive": "0s"}, 400, "/api/models/unload"),
        ({"stream": 1}, 400, "stream"),
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


async def test_a_name_that_nobody_lists_is_the_gpu_nodes_to_judge():
    missing = NodeRefused("model 'm:2b' not found", 404)
    stand = Stand({("alpha", LOAD): missing, ("beta", LOAD): missing})
    answer = await stand.load(model="m:2b")
    assert (answer.status, answer.json()["error"]) == (404, "model 'm:2b' not found (did you mean m:1b?)")
    assert {(name, body["model"]) for name, _, body in stand.operations.bodies} == {("alpha", "m:2b"), ("beta", "m:2b")}
    stand.operations.said["beta", LOAD] = loaded("m:1b")
    assert (await stand.load(model="default")).json()["model"] == "m:1b"
    phones = Stand(registry=fleet((spec("attic"), report(MODEL))))
    assert (await phones.load(model="m:2b")).status == 404
