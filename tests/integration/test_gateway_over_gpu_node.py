"""The whole gateway over a real GPU node with scripted models: slots, loading, batches, devices.

The node is reached by HTTP and by the relay, and callers of the gateway see the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from gpu_node.__main__ import parser
from gpu_node.listening import bind
from gpu_node.relay.assembly import RelayParts, relay_of
from server.embedded import EmbeddedOptions
from server.nodes import NodeId
from tests.fakes.phone import FakePhone
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, WISH, Fleet, Model, ScriptedCatalog, Served, serving
from tests.server.api.gateway import until
from tests.server.live_gateway import Live, live_gateway
from wire.handshake import ServerTerms

SLOTS = 32
OTHER = "other:1b"


class Place:
    """Where a node listens, as the fleet file wants it."""

    host = "127.0.0.1"

    def __init__(self, port: int, kind: str) -> None:
        self.port, self.kind = port, kind


class Stand:
    def __init__(self, node: Served, live: Live, http: httpx.AsyncClient, port: int) -> None:
        self.node, self.live, self.http, self.port = node, live, http, port

    @property
    def slots(self) -> int:
        return next(iter(self.live.gateway.services.registry.fleet.nodes.values())).slots

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json={"model": NAME, **body})

    async def get(self, path: str) -> Any:
        return (await self.http.get(path)).json()

    async def ask_many(self, count: int) -> Sequence[httpx.Response]:
        """That many at once; returns when all that may run do, and lets them go."""
        script = self.node.script
        asking = [asyncio.create_task(self.post("/ask", prompt=f"question {n}")) for n in range(count)]
        room = self.live.gateway.services.dispatch
        await until(lambda: script.running + room.queue_status()["waiting"] == count)
        self.most = script.running
        script.go_on.set()
        return await asyncio.gather(*asking)


@pytest.fixture(params=["ollama", "relay"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@asynccontextmanager
async def way_in(kind: str, node: Served, fleet: Fleet) -> AsyncIterator[int]:
    """The port at which the gateway asks the node."""
    if kind == "ollama":
        yield node.port
        return
    server = relay_of(RelayParts(node.residents, ScriptedCatalog(fleet.models), ServerTerms("node", None)))
    listener = bind("127.0.0.1", 0)
    server.start([listener])
    try:
        yield listener.getsockname()[1]
    finally:
        await server.close()


@asynccontextmanager
async def stand(kind: str, folder: Path, script: Script | None = None, **settings: Any) -> AsyncIterator[Stand]:
    fleet = Fleet(
        models=(Model(NAME), Model(OTHER)), wish=replace(WISH, max_running=SLOTS), max_waiting=64, clock=lambda: 0.0
    )
    async with serving(script, fleet=fleet, real=True) as node, way_in(kind, node, fleet) as port:
        place = cast(FakePhone, Place(port, kind))
        async with (
            live_gateway(folder, place, probe_interval_s=0.05, **settings) as live,
            httpx.AsyncClient(base_url=live.address, timeout=60) as http,
        ):
            yield Stand(node, live, http, port)


async def test_as_many_run_at_once_as_the_node_says_it_has_slots(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path, Script(hold_at=1)) as made:
        (node,) = (await made.get("/api/nodes"))["nodes"]
        assert (node["gpu_node"], node["slots"], node["reported_slots"]) == (True, SLOTS, SLOTS)
        answers = await made.ask_many(SLOTS + 5)
        assert made.most == SLOTS
        assert {answer.json()["response"] for answer in answers} == {"one two three"}


async def test_a_count_that_changes_is_learned_and_who_waits_is_served(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        made.node.script.hold_at = 1
        loaded = await made.post("/api/models/load", max_running=3)
        assert (loaded.status_code, loaded.json()["slots"], loaded.json()["node"]) == (200, 3, "phone-0")
        assert made.slots == 3, "known before the answer is"
        await made.ask_many(6)
        assert made.most == 3


async def test_a_node_that_is_loaded_otherwise_by_somebody_else_is_followed_by_the_probes(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        await made.node.post("/api/models/load", max_running=40)
        await until(lambda: made.slots == 40)


async def test_the_fleet_file_has_the_last_word(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path, Script(hold_at=1)) as made:
        path = tmp_path / "phones.json"
        (entry,) = json.loads(path.read_text())
        path.write_text(json.dumps([{**entry, "max_concurrency": 4}]))
        await until(lambda: made.slots == 4)
        (node,) = (await made.get("/api/nodes"))["nodes"]
        assert (node["slots"], node["reported_slots"]) == (4, SLOTS)
        await made.ask_many(9)
        assert made.most == 4


async def test_a_batch_fills_the_node(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        requests: list[dict[str, Any]] = [{"prompt": f"p{n}"} for n in range(80)]
        requests += [{"messages": [{"role": "user", "content": "q"}]}, {"prompt": "p", "model": "nothing"}]
        told = (await made.post("/v1/batch/completions", requests=requests, max_tokens=2)).json()
        *texts, chat, unknown = told["results"]
        assert [one["choices"][0]["text"] for one in texts] == ["one two "] * 80
        assert chat["choices"][0]["message"]["content"] == "one two "
        assert unknown["error"]["code"] == "model_not_found"
        assert told["usage"]["completion_tokens"] == 2 * 81
        assert made.node.script.most == SLOTS


async def test_a_client_that_leaves_a_batch_frees_the_node(kind: str, tmp_path: Path):
    script = Script(hold_at=1)
    async with stand(kind, tmp_path, script) as made:
        asking = asyncio.create_task(made.post("/v1/batch/completions", prompts=[f"p{n}" for n in range(99)]))
        await until(lambda: script.running == SLOTS)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: script.running == 0)
        await until(lambda: made.live.gateway.services.registry.loads[NodeId(_address(made))].in_flight == 0)
        assert script.told == SLOTS, "what waited was never begun"


def _address(made: Stand) -> str:
    return f"127.0.0.1:{made.port}"


async def test_another_model_is_loaded_asked_listed_and_let_go(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        answer = await made.post("/api/models/load", model=OTHER, keep_alive=-1, stream=True)
        last = json.loads(answer.text.splitlines()[-1])
        assert (last["status"], last["model"], last["node"], last["device"]) == ("success", OTHER, "phone-0", "cpu")
        assert (await made.post("/api/models/load", model="default")).json()["model"] == NAME, "the node's own word"
        listed = {model["name"]: model for model in (await made.get("/api/models"))["models"]}
        assert {name: model["loaded"] for name, model in listed.items()} == {NAME: True, OTHER: True}
        assert listed[OTHER]["nodes"][0]["idle_seconds_left"] is None, "kept"
        assert {model["name"] for model in (await made.get("/api/ps"))["models"]} == {NAME, OTHER}
        assert (await made.post("/ask", model=OTHER, prompt="hi")).json()["response"] == "one two three"
        told = (await made.post("/api/models/unload", model=OTHER)).json()
        assert (told["status"], told["nodes"][0]["status"]) == ("unloaded", "unloaded")
        assert {model["name"] for model in (await made.get("/api/ps"))["models"]} == {NAME}
        assert (await made.post("/api/models/unload", model=OTHER)).json()["status"] == "not loaded"


async def test_devices_are_told_with_the_nodes_name(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        told = await made.get("/api/gpu")
        if kind == "ollama":  # over the relay a node tells the devices that it may use
            assert [(gpu["node"], gpu["name"]) for gpu in told["gpus"]] == [("phone-0", "a GPU")]
        (account,) = told["accounts"]
        assert (account["node"], account["device"]) == ("phone-0", "cpu")
        assert NAME in account["models"]
        assert told["silent"] == []


REFUSED: Sequence[tuple[dict[str, Any], int, str]] = [
    ({"dtype": "float8"}, 400, "dtype"),
    ({"num_gpus": 2}, 400, "num_gpus"),
    ({"device": "cuda"}, 400, "no GPU"),
    ({"colour": "red"}, 400, "colour"),
    ({"model": "no-such"}, 404, "not found"),
    ({"model": "no-such", "node": "phone-0"}, 404, "not found"),
    ({"kv_memory": "4TB"}, 503, "phone-0: "),
]


async def test_what_the_node_refuses_is_told_in_its_words(kind: str, tmp_path: Path):
    async with stand(kind, tmp_path) as made:
        for body, status, word in REFUSED:
            for stream in (False, True):
                answer = await made.post("/api/models/load", **body, stream=stream)
                assert (answer.status_code, word in answer.json()["error"]) == (status, True), answer.text


def test_the_embedded_node_is_started_with_flags_that_a_gpu_node_takes():
    options = EmbeddedOptions(model="default")
    flags = parser().parse_args(options.arguments()[len(options.command) :])
    assert (flags.model, flags.host, flags.port) == ("default", "127.0.0.1", "0")
    assert (flags.keep_main, flags.exit_with_parent, flags.announce_port) == (True, True, True)
