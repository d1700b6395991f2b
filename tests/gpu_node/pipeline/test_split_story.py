"""Devices die, come and go under an engine: nobody who waits for an answer hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.errors import NodeError
from gpu_node.split_plan import DoesNotFit
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.engine.test_chain_engine import REQUESTS, ids_of
from tests.gpu_node.pipeline.split_engines import Answers, Scene, answers_alone
from tests.gpu_node.pipeline.splits import SECONDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Answers:
    return answers_alone(folder)


@pytest.mark.parametrize(("device", "step"), [("cpu:0", 2), ("cpu:1", 9), ("cpu:2", 25)])
async def test_a_stage_that_dies_costs_no_token(folder: Path, alone: Answers, device: str, step: int) -> None:
    scene = Scene(folder, (1, 2, 1), (2, 2))
    async with scene.engine() as engine:
        asking = asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await scene.after_steps(step)
        await asyncio.to_thread(scene.threads.kill, device)
        assert await asking == alone
        await settled(lambda: scene.runner.pipeline.epoch == 2)


async def test_devices_come_and_go_while_answers_are_written(folder: Path, alone: Answers) -> None:
    """One joins, one leaves, one dies, one comes back: nobody who waits for an answer hears of it."""
    scene = Scene(folder, (3, 1), (1, 2, 1))
    async with scene.engine() as engine:
        asking = asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await scene.after_steps(2)
        scene.fleet.add("cpu:64MiB")
        assert await asking == alone
        await settled(lambda: scene.runner.pipeline.epoch == 2)
        asking = asyncio.gather(*(ids_of(engine, replace(request, cache_salt="2")) for request in REQUESTS))
        scene.fleet.remove("cpu:0")
        assert await asking == alone
        asking = asyncio.gather(*(ids_of(engine, replace(request, cache_salt="3")) for request in REQUESTS))
        await settled(lambda: scene.fleet.find("cpu:0").state == "gone" and scene.runner.pipeline.epoch == 3)
        scene.fleet.ask("cpu:0")
        await settled(lambda: scene.runner.pipeline.epoch == 4)
        await asyncio.to_thread(scene.threads.kill, "cpu:2")
        assert await asking == alone
        assert [event.device for event in scene.fleet.events if event.what == "lost"] == ["cpu:2"]


async def settled(holds: Callable[[], bool]) -> None:
    for _ in range(int(SECONDS / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to that")


async def test_when_nothing_fits_all_end_with_that_error_until_it_fits_again(folder: Path, alone: Answers) -> None:
    scene = Scene(folder, (2, 2))
    async with scene.engine() as engine:
        endless = [replace(request, bounds=replace(request.bounds, max_tokens=-1)) for request in REQUESTS]
        asking = [asyncio.create_task(ids_of(engine, request)) for request in endless]
        await scene.after_steps(4)
        await asyncio.to_thread(scene.threads.kill, "cpu:1")
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, DoesNotFit) for one in ended)
        with pytest.raises(NodeError, match="does not fit on 1 devices"):
            await ids_of(engine, REQUESTS[0])
        scene.fleet.ask("cpu:1")
        await settled(lambda: scene.runner.pipeline.state == "running" and not scene.runner.restless)
        assert await ids_of(engine, REQUESTS[0]) == alone[0]
