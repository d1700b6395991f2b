"""Models, devices, loading and unloading of relay nodes, as they are asked for over HTTP elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from server.backends.base import Patience
from server.backends.operations import OperationsByKind
from server.backends.relay import RelayBackend
from server.errors import NodeBusy, NodeError, NodeIncapable, NodeRefused, NodeStalled
from server.nodes import NodeSpec
from tests.fakes.relay_node import Refusal, fake_relay_node
from tests.server.backends.relay_asking import REPORT, relay_backend, spec_of
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode
from wire.messages_stats import ResidentRecord, Stats
from wire.messages_work import Load, Phase, Progress, Unload

PATIENCE = Patience(60, 60, 60, 60)
LOAD, UNLOAD = "/api/models/load", "/api/models/unload"


async def steps(backend: RelayBackend, spec: NodeSpec, patience: Patience = PATIENCE, **body: Any) -> list[Any]:
    async with aclosing(
        backend.operations.lines(spec, LOAD, {"model": "tiny", "stream": True, **body}, patience)
    ) as told:
        return [record async for record in told]


async def test_what_is_there_and_on_which_device():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        told = await backend.operations.ask(spec_of(node), "/api/models", 5)
        assert [model["name"] for model in told["models"]] == ["tiny", "other:1b", "gone"]
        told = await backend.operations.ask(spec_of(node), "/api/gpu", 5)
        assert [account["device"] for account in told["accounts"]] == ["cuda", "cpu"]


async def test_what_the_protocol_has_nothing_for():
    async with fake_relay_node() as node, relay_backend() as backend:
        with pytest.raises(NodeIncapable, match="/api/pipeline"):
            await backend.operations.ask(spec_of(node), "/api/pipeline", 5)
        with pytest.raises(NodeIncapable):
            await backend.operations.order(spec_of(node), LOAD, {"model": "tiny"}, 5)
        with pytest.raises(NodeIncapable):
            await anext(backend.operations.lines(spec_of(node), UNLOAD, {"model": "tiny"}, PATIENCE))
        assert node.accepted == 0


async def test_a_loading_tells_its_steps_and_passes_its_options_on():
    progress = (Progress(Phase.WAITING), Progress(Phase.FETCHING), Progress(Phase.READING, 5, 10))
    async with fake_relay_node(report=REPORT, progress=progress) as node, relay_backend() as backend:
        fetching, reading, last = await steps(backend, spec_of(node), keep_alive="5m", context=128, dtype="bfloat16")
        assert (fetching["status"], reading["status"], reading["completed"]) == ("fetching", "loading", 5)
        assert (last["status"], last["model"], last["slots"], last["dtype"]) == ("success", "tiny", 32, "float32")
        options = {"context_tokens": 128, "dtype": "bfloat16", "keep_alive_seconds": 300.0, "hold": False}
        assert dict(node.asked(Load)[0].options) == options


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Error(ErrorCode.BAD_REQUEST, "in use", details=(("status", 409),)), NodeRefused),
        (Error(ErrorCode.NO_ROOM, "no room"), NodeBusy),
        (Error(ErrorCode.MODEL_NOT_FOUND, "model 'tiny' not found"), NodeRefused),
    ],
)
async def test_a_loading_that_is_refused(error: Error, kind: type[NodeError]):
    async with fake_relay_node(refusals=[Refusal(FrameType.LOAD, error)]) as node, relay_backend() as backend:
        with pytest.raises(kind) as caught:
            await steps(backend, spec_of(node))
        if isinstance(caught.value, NodeRefused):
            assert caught.value.status == (409 if error.details else 404)


@pytest.mark.parametrize("body", [{"context": [1, 2, {}]}, {"keep_alive": "soon"}, {"model": ""}, {"x" * 200: 1}])
async def test_a_wish_that_no_message_carries_is_refused(body: Mapping[str, Any]):
    async with fake_relay_node() as node, relay_backend() as backend:
        with pytest.raises(NodeRefused):
            await steps(backend, spec_of(node), **body)


async def test_a_loading_that_falls_silent():
    async with fake_relay_node() as node, relay_backend() as backend:
        await backend.probe(spec_of(node), 5)
        node.mute = True
        with pytest.raises(NodeStalled) as caught:
            await steps(backend, spec_of(node), Patience(5, 5, 0.05, 20))
        assert caught.value.phase == "load"


async def test_unloading_tells_what_became_of_it():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        spec, order = spec_of(node), backend.operations.order
        told = await order(spec, UNLOAD, {"model": "Tiny"}, 5)
        assert told == {"model": "Tiny", "status": "unloading", "in_flight": 2}
        assert (await order(spec, UNLOAD, {"model": "other:1b"}, 5))["status"] == "not loaded"
        assert [asked.model for asked in node.asked(Unload)] == ["Tiny", "other:1b"]
        node.script.refusals.append(Refusal(FrameType.UNLOAD, Error(ErrorCode.MODEL_NOT_FOUND, "who?")))
        with pytest.raises(NodeRefused, match="who"):
            await order(spec, UNLOAD, {"model": "nobody"}, 5)


async def test_a_node_that_falls_silent_over_an_unloading_has_stalled():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        await backend.probe(spec_of(node), 5)
        telling = asyncio.create_task(backend.operations.order(spec_of(node), UNLOAD, {"model": "tiny"}, 0.2))
        await node.heard_of(Stats, 2)
        node.mute = True
        with pytest.raises(NodeStalled):
            await telling
        assert not node.asked(Unload), "it was the unloading that was not answered"


async def test_a_model_that_is_gone_is_unloaded():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        spec, order = spec_of(node), backend.operations.order
        telling = asyncio.create_task(order(spec, UNLOAD, {"model": "tiny"}, 5))
        await node.heard_of(Unload)
        node.script.report = replace(REPORT, residents=(ResidentRecord("gone", "ready"),))
        assert await telling == {"model": "tiny", "status": "unloaded"}


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> dict[str, Any]:
        return {"by": self.name, "path": path}

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        return {"by": self.name, **body}

    async def lines(self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience) -> Any:
        yield {"by": self.name}


async def test_each_kind_is_asked_in_its_way():
    made: list[str] = []

    def relay() -> Named:
        made.append("relay")
        return Named("relay")

    operations = OperationsByKind(Named("http"), relay)
    async with fake_relay_node() as node:
        over_http, over_relay = replace(spec_of(node), kind="ollama"), spec_of(node)
        assert await operations.ask(over_http, "/api/gpu", 1) == {"by": "http", "path": "/api/gpu"} and not made
        assert await operations.ask(over_relay, "/api/gpu", 1) == {"by": "relay", "path": "/api/gpu"} and made
        assert await operations.order(over_relay, UNLOAD, {"model": "m"}, 1) == {"by": "relay", "model": "m"}
        assert [one async for one in operations.lines(over_http, LOAD, {}, PATIENCE)] == [{"by": "http"}]
