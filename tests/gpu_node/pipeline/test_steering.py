"""Things that happen at the same moment: the engine comes to the meeting while the devices change or a worker dies."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.devices import Device
from gpu_node.engine.loader import load_runner
from gpu_node.errors import ModelError
from gpu_node.pipeline.orders import Load, Take
from gpu_node.pipeline.process import WorkerProcess, WorkerWords
from gpu_node.pipeline.split_runner import SplitRunner
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from gpu_node.plan_picture import Picture
from tests.fakes.greedy_steps import some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.pipeline.faulty_workers import held_at_load
from tests.gpu_node.pipeline.splits import EXACT, PATIENT, SECONDS, Story, Threads, by_hand, fleet_of, model_of, split

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


class DyingAtTake(Worker):
    """It loads, and is gone when the epoch begins."""

    def __init__(self, place: WorkerPlace) -> None:
        super().__init__(place)
        self.handlers[Take] = lambda _: self.stop()


def test_what_was_to_follow_is_not_wanted_any_more_when_the_engine_has_closed_its_own(
    folder: Path, alone: list[int]
) -> None:
    """Between the meeting and its verdict the device that joined is gone again: one worker alone takes over."""
    with split(folder, (4,), (2, 2), fleet=fleet_of(1)) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        story.go(4)
        fleet.add("cpu:64MiB")
        prepared = threading.Event()
        runner.listen(prepared.set)
        assert runner.restless or prepared.wait(SECONDS)
        with runner._steering.changed:  # the pipeline's thread learns of both at once
            fleet.remove("cpu:1", force=True)
            story.tend()
        assert len(story.changes) == 1 and [stage.device for stage in runner.pipeline.stages] == ["cpu:0"]
        assert story.go(8) == alone


def test_a_cache_is_made_smaller_while_something_is_loaded(folder: Path, alone: list[int]) -> None:
    threads, loading, go_on = Threads(), threading.Event(), threading.Event()
    with split(folder, (3, 1), (1, 2, 1), threads=threads) as (runner, fleet, _):
        threads.make = held_at_load(loading, go_on)
        fleet.add("cpu:64MiB")
        assert loading.wait(SECONDS)
        found: list[int] = []
        engine = threading.Thread(target=lambda: found.append(runner.shrink_cache(40).block_count), daemon=True)
        engine.start()
        engine.join(SECONDS)
        go_on.set()
        assert found == [40], "whatever is loaded is given up for it"
        story = Story(runner, PROMPT)
        story.until(lambda: len(story.changes) == 1)
        assert len(runner.pipeline.stages) == 3 and story.go(12) == alone


def test_who_dies_as_an_epoch_begins_costs_the_others_nothing(folder: Path, alone: list[int]) -> None:
    """They have begun the new one by then, and go back without being started anew."""
    threads = Threads()
    with split(folder, (3, 1), (1, 2, 1), threads=threads) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        story.go(4)
        threads.make = DyingAtTake
        fleet.add("cpu:64MiB")
        story.until(lambda: bool(story.changes))
        assert story.go(8) == alone
        assert [stage.device for stage in runner.pipeline.stages] == ["cpu:0", "cpu:1"]
        assert len(threads.started) == 3 and runner.pipeline.epoch == 3


def test_threads_are_shared_by_those_who_compute_together(folder: Path, alone: list[int]) -> None:
    """Six of all together; when a third device takes over, who stays has fewer and reads nothing again."""
    orders: list[Load | Take] = []

    def make(place: WorkerPlace) -> Worker:
        worker = Worker(place)
        usual = dict(worker.handlers)

        def noted(order: Load | Take) -> None:
            orders.append(order)
            usual[type(order)](order)

        worker.handlers |= {Load: noted, Take: noted}
        return worker

    load = replace(EXACT, threads=6)
    with split(folder, (3, 1), (1, 2, 1), threads=Threads(make), load=load) as (runner, fleet, _):
        story = Story(runner, PROMPT)
        story.go(4)
        assert [one.load.threads for one in orders if isinstance(one, Load)] == [3, 3]
        assert [one.threads for one in orders if isinstance(one, Take)] == [3, 3]
        orders.clear()
        fleet.add("cpu:64MiB")
        story.until(lambda: bool(story.changes))
        assert {one.threads for one in orders if isinstance(one, Take)} == {2}
        seats = runner._steering.course.lineup.seats
        assert [seat.part.reused_layers for seat in seats] == [1, 0, 0]
        assert story.go(8) == alone


def test_a_worker_that_the_system_does_not_start_is_planned_around(folder: Path, alone: list[int]) -> None:
    """At the start, and when it is to take another one's place."""
    threads = Threads()
    refused = {"cpu:2", "cpu:3"}

    def start(words: WorkerWords) -> WorkerProcess:
        if words.device.name in refused:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return threads(words)

    with split(folder, (1, 2, 1), (2, 2), (4,), threads=start) as (runner, fleet, _):
        assert [stage.device for stage in runner.pipeline.stages] == ["cpu:0", "cpu:1"]
        story = Story(runner, PROMPT)
        story.go(4)
        fleet.remove("cpu:2")
        fleet.add("cpu:64MiB")
        fleet.remove("cpu:1", force=True)  # cpu:3 takes its place, or would
        story.until(lambda: len(story.changes) == 1)
        assert story.go(8) == alone and runner.pipeline.state == "running"
        lost = [(event.device, event.detail) for event in fleet.events if event.what == "lost"]
        assert [device for device, _ in lost] == ["cpu:2", "cpu:3"]
        assert all("its worker cannot be started: Resource temporarily unavailable" in why for _, why in lost)
    assert all(worker.wait(0) for worker in threads.started)


def test_what_nobody_has_thought_of_ends_the_model_and_not_the_thread(folder: Path, alone: list[int]) -> None:
    """A planner with a mistake: the ring that ran is closed, and the next change of the devices is a new beginning."""
    usual, fleet, threads = by_hand(folder, (3, 1), (1, 2, 1)), fleet_of(2), Threads()

    def plan(devices: Sequence[Device]) -> Picture:
        if len(devices) == 4:
            raise ZeroDivisionError("a mistake")
        return usual(devices)

    runner = SplitRunner(model_of(folder), fleet, plan, PATIENT, threads)
    try:
        story, ring = Story(runner, PROMPT), runner._steering.course.ring
        story.go(4)
        with runner._steering.changed:
            fleet.add("cpu:64MiB")
            fleet.add("cpu:64MiB")
        with pytest.raises(ModelError, match="the split failed: a mistake"):
            story.until(lambda: False)
        assert ring is not None and ring.over and not ring._reader.is_alive()
        fleet.remove("cpu:3")
        story.until(lambda: len(story.changes) == 1)
        assert story.go(8) == alone and len(runner.pipeline.stages) == 3
    finally:
        runner.close()
    assert all(worker.wait(0) for worker in threads.started)
