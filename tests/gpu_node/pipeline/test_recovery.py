"""Devices die, leave, come and change while a model runs over them: its answers stay what they are alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import load_runner
from gpu_node.engine.step import Row, Step
from gpu_node.errors import DeviceOutOfMemory, GenerationFailed, ModelError, NodeError, StageLost
from gpu_node.pipeline.worker import Worker
from gpu_node.split_plan import DoesNotFit
from tests.fakes.greedy_steps import some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.pipeline.faulty_workers import (
    HUGE,
    POISON,
    DyingAtLoad,
    FailingAtLoad,
    Stumbling,
    UnableAtLoad,
    held_at_load,
)
from tests.gpu_node.pipeline.splits import EXACT, SECONDS, Story, Threads, fleet_of, split
from tests.gpu_node.pipeline.worker_crowd import eventually

PROMPT = some_prompts(VOCABULARY, (21,), seed=8)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[int]:
    runner = load_runner(folder, EXACT)
    found = greedy(runner, PROMPT, 12)
    runner.close()
    return found


def events(fleet: DeviceFleet, what: str) -> list[str]:
    return [event.device for event in fleet.events if event.what == what]


@pytest.mark.parametrize("device", ["cpu:0", "cpu:1", "cpu:2"])
def test_a_stage_that_dies_is_planned_around(folder: Path, alone: list[int], device: str) -> None:
    with split(folder, (1, 2, 1), (2, 2)) as (runner, fleet, threads):
        story = Story(runner, PROMPT)
        story.go(4)
        threads.kill(device)
        assert story.go(8) == alone
        assert story.changes and len(threads.started) == 3
        assert events(fleet, "lost") == [device]
        status = runner.pipeline
        assert [stage.layers for stage in status.stages] == [2, 2] and device not in {
            stage.device for stage in status.stages
        }
        assert status.epoch == 2 and status.state == "running" and status.last_recovery_seconds is not None


def test_when_nothing_fits_that_is_said_until_a_device_is_back(folder: Path, alone: list[int]) -> None:
    with split(folder, (2, 2)) as (runner, fleet, threads):
        story = Story(runner, PROMPT)
        story.go(4)
        threads.kill("cpu:1")
        with pytest.raises(DoesNotFit, match=r"cpu:1 is lost: .*\. tiny does not fit on 1 devices"):
            story.go(4)
        with pytest.raises(DoesNotFit):
            runner.tend(0)
        with pytest.raises(StageLost):
            runner.run(Step((Row(0, (1,), 0, (0,), "logits", 1),)), [])
        assert runner.pipeline.state == "broken" and "does not fit" in runner.pipeline.error
        fleet.ask("cpu:1")
        story.until(lambda: bool(story.changes))
        story.tokens = story.tokens[: len(PROMPT) + 4]
        assert story.go(8) == alone
        assert not any(one.state == "lost" for one in fleet.devices)


def test_a_device_that_is_removed_drains_first(folder: Path, alone: list[int]) -> None:
    with split(folder, (1, 2, 1), (2, 2)) as (runner, fleet, threads):
        story = Story(runner, PROMPT)
        story.go(3)
        assert runner.can_do_without("cpu:1") is None
        fleet.remove("cpu:1")
        story.go(1)
        story.until(lambda: bool(story.changes))
        assert story.go(8) == alone
        assert story.losses == 0 and events(fleet, "lost") == []
        assert fleet.find("cpu:1").state == "gone" and threads.by_device["cpu:1"].wait(0)


def test_one_that_cannot_be_missed_stays(folder: Path, alone: list[int]) -> None:
    with split(folder, (2, 2)) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        sentence = runner.can_do_without("cpu:1")
        assert sentence is not None and "does not fit on 1 devices" in sentence
        fleet.remove("cpu:1")
        story.until(lambda: fleet.find("cpu:1").state == "present")
        assert events(fleet, "refused") == ["cpu:1"] and not story.changes
        assert story.go(12) == alone


def test_one_that_is_taken_by_force_ends_the_model(folder: Path) -> None:
    with split(folder, (2, 2)) as (runner, fleet, _):
        fleet.remove("cpu:1", force=True)
        with pytest.raises(DoesNotFit):
            Story(runner, PROMPT).until(lambda: False)


def test_a_device_that_joins_takes_over_between_steps(folder: Path, alone: list[int]) -> None:
    """From this process to two workers, which are quicker from step to step."""
    with split(folder, (4,), (2, 2), fleet=fleet_of(1, "64MiB")) as (runner, fleet, threads):
        story = Story(runner, PROMPT)
        story.go(4)
        assert not threads.started and runner.depth == 1 and runner.pipeline.stages[0].pid is None
        fleet.add("cpu:64MiB")
        story.until(lambda: bool(story.changes))
        assert story.go(8) == alone and story.losses == 0
        assert sorted(threads.by_device) == ["cpu:0", "cpu:1"] and runner.depth == 2


def test_a_device_without_a_use_is_told_so_once(folder: Path, alone: list[int]) -> None:
    with split(folder, (2, 2), (2, 2, 0), (2, 2, 0, 0)) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        story.go(2)
        for refused in (["cpu:2"], ["cpu:2", "cpu:3"]):  # thought over twice
            fleet.add("cpu:64MiB")
            assert eventually(lambda so_far=refused: events(fleet, "refused") == so_far and fleet.devices[-1].reason)
        assert story.go(10) == alone and story.changes == []
        assert events(fleet, "refused") == ["cpu:2", "cpu:3"]
        assert fleet.devices[-1].reason == "tiny runs no better with it"


def test_a_plan_loads_beside_what_runs(folder: Path, alone: list[int]) -> None:
    """While the third worker has not even begun to load, two go on; the layers that stay are not read again."""
    threads, loading, go_on = Threads(), threading.Event(), threading.Event()
    with split(folder, (3, 1), (1, 2, 1), threads=threads) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        threads.make = held_at_load(loading, go_on)
        try:
            fleet.add("cpu:64MiB")
            assert loading.wait(SECONDS)
            assert len(story.go(6)) == 6 and not story.changes
        finally:
            go_on.set()
        story.until(lambda: bool(story.changes))
        assert story.go(6) == alone and story.losses == 0 and runner.pipeline.epoch == 2


@pytest.mark.parametrize("why", ["dies", "fails"])
def test_a_plan_whose_worker_is_lost_while_it_loads_is_given_up(folder: Path, alone: list[int], why: str) -> None:
    threads = Threads()
    with split(folder, (3, 1), (1, 2, 1), threads=threads) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        threads.make = DyingAtLoad if why == "dies" else FailingAtLoad
        fleet.add("cpu:64MiB")
        story.until(lambda: events(fleet, "lost") == ["cpu:2"])
        assert story.go(12) == alone and not story.changes and story.losses == 0
        story.until(lambda: runner.pipeline.state == "running" and threads.by_device["cpu:2"].wait(0))
        assert runner.pipeline.epoch == 1
        threads.make = Worker
        fleet.ask("cpu:2")
        story.until(lambda: bool(story.changes))
        assert len(runner.pipeline.stages) == 3


def test_a_change_of_mind_starts_over(folder: Path, alone: list[int]) -> None:
    """The device that was added is taken away again while it loads."""
    threads, loading, go_on = Threads(), threading.Event(), threading.Event()
    with split(folder, (3, 1), (1, 2, 1), threads=threads) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        threads.make = held_at_load(loading, go_on)
        fleet.add("cpu:64MiB")
        assert loading.wait(SECONDS)
        fleet.remove("cpu:2")
        go_on.set()  # what is loaded by now is not wanted any more
        story.until(lambda: threads.by_device["cpu:2"].wait(0))
        assert story.go(12) == alone and not story.changes
        story.until(lambda: runner.pipeline.state == "running")


def test_a_stage_that_is_made_smaller_gets_a_smaller_cache(folder: Path, alone: list[int]) -> None:
    load = replace(EXACT, cache=CacheOptions(block_tokens=4, max_running=1000))
    with split(folder, (2, 2), fleet=fleet_of(2, "8MiB"), load=load) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        story.go(4)
        before = runner.cache.block_count
        fleet.resize("cpu:1", 4 << 20)
        story.until(lambda: bool(story.changes))
        assert story.go(8) == alone
        assert runner.cache.block_count < before and fleet.find("cpu:1").held_bytes <= 4 << 20
        assert fleet.find("cpu:1").device.budget_bytes == 4 << 20 and events(fleet, "lost") == []


def test_a_cache_can_be_made_smaller(folder: Path, alone: list[int]) -> None:
    with split(folder, (2, 2)) as (runner, _, __):
        assert runner.shrink_cache(40).block_count == 40 == runner.cache.block_count
        assert greedy(runner, PROMPT, 12) == alone


def test_a_step_that_fails_is_told_and_the_ring_goes_on(folder: Path, alone: list[int]) -> None:
    with split(folder, (2, 2), threads=Threads(Stumbling)) as (runner, _, __):
        for token, error in ((POISON, GenerationFailed), (HUGE, DeviceOutOfMemory)):
            with pytest.raises(error, match="cpu:0"):
                runner.run(Step((Row(0, (token,), 0, (0,), "logits", 1),)), [])
        assert greedy(runner, PROMPT, 12) == alone
        assert runner.pipeline.epoch == 1


def test_every_message_is_counted_once_a_link_and_step(folder: Path) -> None:
    with split(folder, (1, 2, 1)) as (runner, _, __):
        greedy(runner, PROMPT, 12)
        Story(runner, PROMPT).until(lambda: runner.pipeline.hops == 12 * 4)
        assert runner.pipeline.steps == 12 and [stage.steps for stage in runner.pipeline.stages] == [12, 12, 12]


@pytest.mark.parametrize(("make", "error"), [(FailingAtLoad, DeviceOutOfMemory), (UnableAtLoad, ModelError)])
def test_a_start_that_fails_leaves_nothing(folder: Path, make: type[Worker], error: type[NodeError]) -> None:
    threads = Threads(make)
    with pytest.raises(error, match="this is why"), split(folder, (2, 2), threads=threads):
        pass
    assert len(threads.started) == 2


def test_a_worker_that_dies_at_the_start_is_planned_around_or_named(folder: Path, alone: list[int]) -> None:
    dying = Threads(lambda place: (DyingAtLoad if place.name == "cpu:1" else Worker)(place))
    with split(folder, (1, 2, 1), (2, 2), threads=dying) as (runner, _, __):
        assert greedy(runner, PROMPT, 12) == alone
    with (
        pytest.raises(DoesNotFit, match=r"cpu:. is lost: .*\. "),
        split(folder, (2, 2), threads=Threads(DyingAtLoad)),
    ):
        pass
    with pytest.raises(DoesNotFit, match="tiny does not fit"), split(folder, (2, 2), fleet=fleet_of(1)):
        pass
