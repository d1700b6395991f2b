"""An engine whose smallest stage borrows answers what a single stage answers alone, with shared beginnings, several
samples, guesses, too few blocks for everybody, and reclaims in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.pipeline.split_runner import SplitRunner
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from gpu_node.pipeline_status import LendingStatus
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.engine.test_chain_engine import REQUESTS, ids_of
from tests.gpu_node.pipeline.split_engines import Answers, answers_alone, engine_over
from tests.gpu_node.pipeline.splits import EXACT, PATIENT, SECONDS, Threads, by_hand, model_of
from tests.gpu_node.pipeline.test_head_lending import mismatched

CACHE = CacheOptions(block_tokens=4, context=64, max_running=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("lending") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Answers:
    return answers_alone(folder)


class Scene:
    """Two stages of which the first has room for 20 blocks, and everybody needs more than twice that."""

    def __init__(self, folder: Path, **changes: float) -> None:
        self._folder, self._policy = folder, replace(LendingPolicy(chunk_blocks=4, idle_seconds=1e6), **changes)  # type: ignore[arg-type]
        self.runner: SplitRunner | None = None
        self.threads, self.fleet, self.cache = Threads(), mismatched(), CACHE

    def load(self) -> SplitRunner:
        options = replace(PATIENT, lending=self._policy)
        model = model_of(self._folder, replace(EXACT, cache=self.cache))
        self.runner = SplitRunner(model, self.fleet, by_hand(self._folder, (2, 2)), options, self.threads)
        return self.runner

    @property
    def lending(self) -> LendingStatus:
        assert self.runner is not None
        status = self.runner.pipeline
        assert status is not None and status.lending is not None
        return status.lending

    def hang_up(self) -> None:
        """The link between lender and holder ends, and nothing else."""
        session = self.threads.by_device["cpu:1"].worker.lending._session
        assert session is not None
        session._hang_up(0)

    async def after_steps(self, count: int) -> None:
        runner = self.runner
        assert runner is not None
        await self.until(lambda: runner.steps >= count)

    @staticmethod
    async def until(seen: Callable[[], bool]) -> None:
        for _ in range(int(SECONDS / 0.002)):
            if seen():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("what is waited for does not come")


async def test_everybody_runs_over_borrowed_blocks_and_says_the_same(folder: Path, alone: Answers) -> None:
    scene = Scene(folder)
    async with engine_over(scene.load, step_tokens=16, mixed_step_tokens=9) as engine:
        assert await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS)) == alone
        assert scene.lending.granted and scene.lending.lent_bytes
        assert not scene.lending.refused and engine.stats().preemptions == 0


@pytest.mark.parametrize("changes", [{}, {"move_seconds": 0.0}], ids=["to host memory", "computed anew"])
async def test_reclaims_in_the_middle_change_no_token(folder: Path, alone: Answers, changes: dict[str, float]) -> None:
    scene = Scene(folder, **changes)
    async with engine_over(scene.load, step_tokens=16, mixed_step_tokens=9) as engine:
        asking = asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await scene.until(lambda: bool(scene.lending.lent_bytes))
        assert scene.runner is not None
        await scene.after_steps(scene.runner.steps + 4)
        scene.runner.ask_back("cpu:1", 1 << 20)
        await scene.until(lambda: not scene.lending.lent_bytes and bool(scene.lending.reclaimed))
        scene.runner.ask_back("cpu:1", 0)
        assert await asking == alone
        told = scene.lending
        assert told.recomputed_blocks if changes else told.moved_blocks


@pytest.mark.parametrize("losses", [1, 4])
async def test_lenders_that_hang_up_cost_no_token(folder: Path, alone: Answers, losses: int) -> None:
    """What lay there is computed again; after a few times nobody borrows any more."""
    scene = Scene(folder)
    async with engine_over(scene.load, step_tokens=16, mixed_step_tokens=9) as engine:
        asking = asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await scene.until(lambda: scene.runner is not None and bool(scene.lending.lent_bytes))
        assert scene.runner is not None
        begun = scene.runner.steps + 2  # lent for certain, and used
        for loss in range(losses):
            await scene.after_steps(begun + 7 * loss)
            scene.hang_up()
        assert await asking == alone
        assert (scene.runner is not None and scene.runner.lends) or losses > 1
        assert scene.lending.recomputed_blocks and scene.lending.reclaimed
        assert engine.stats().failed == 0 and engine.stats().restarts == 0
        status = scene.runner.pipeline if scene.runner is not None else None
        assert status is not None and status.epoch == 1, "the ring was never in question"


class OtherProcess:
    """Takes memory of the second device, which has no budget of its own."""

    def __init__(self) -> None:
        self.free_bytes = 3 << 20

    def worker(self, place: WorkerPlace) -> Worker:
        worker = Worker(place)
        if place.name == "cpu:1":
            worker.device_bytes = lambda: (4 << 20, self.free_bytes)
        return worker


async def test_an_idle_engine_gives_back_what_another_process_needs(folder: Path, alone: Answers) -> None:
    other, fleet = OtherProcess(), mismatched()
    first, second = fleet.present()
    scene = Scene(folder)
    scene.threads, scene.cache = (
        Threads(other.worker),
        CacheOptions(block_tokens=4, size_bytes=80 * 2048, max_running=8),
    )
    scene.fleet = DeviceFleet([first, replace(second, budget_bytes=None)])
    async with engine_over(scene.load, step_tokens=16, mixed_step_tokens=9) as engine:
        assert await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS)) == alone
        assert scene.runner is not None and scene.lending.lent_bytes and not scene.lending.reclaimed
        steps = scene.runner.steps
        other.free_bytes = 1 << 18
        await scene.until(lambda: not scene.lending.lent_bytes)
        assert scene.lending.reclaimed and scene.runner.steps == steps
        other.free_bytes = 3 << 20
        assert await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS)) == alone


async def test_a_smaller_budget_of_the_lender_takes_its_memory_back_from_an_idle_engine(
    folder: Path, alone: Answers
) -> None:
    scene = Scene(folder)
    first, second = scene.fleet.present()
    scene.fleet = DeviceFleet([first, replace(second, budget_bytes=2 << 20)])
    async with engine_over(scene.load, step_tokens=16, mixed_step_tokens=9) as engine:
        assert await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS)) == alone
        assert scene.lending.lent_bytes and scene.runner is not None
        steps = scene.runner.steps
        scene.fleet.resize("cpu:1", 1 << 20)
        await scene.until(lambda: not scene.lending.lent_bytes)
        assert scene.runner.steps == steps
        assert await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS)) == alone
