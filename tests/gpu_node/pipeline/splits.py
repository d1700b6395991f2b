"""Split models whose workers are threads of this process, over devices that are told and plans made by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import Device, local_links, parse_devices, planned_devices
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions
from gpu_node.engine.step import CacheChange, Pick, Row, Step
from gpu_node.errors import StageLost
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import describe
from gpu_node.model_shape import shape_of
from gpu_node.pipeline.process import WorkerProcess, WorkerWords
from gpu_node.pipeline.split_model import PlanDevices, SplitModel, SplitOptions
from gpu_node.pipeline.split_runner import SplitRunner
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from gpu_node.plan_picture import Picture
from gpu_node.split import SplitWish, plan_split
from gpu_node.split_plan import Demand, DoesNotFit, ModelShape, Pace, Sizes
from tests.gpu_node.engine.driving import GREEDY

EXACT = LoadOptions("cpu", "float32", kernels="torch", cache=CacheOptions(block_tokens=4, block_count=200))
# Threads of one process wait for each other's interpreter lock; nobody is frozen but where a test says so.
PATIENT = SplitOptions(depth=2, silence_seconds=20.0, loading_silence_seconds=20.0, stop_seconds=10.0)
SECONDS = 60.0
DEMAND = Demand(64, block_tokens=4, step_tokens=16)


class ThreadWorker:
    """As a process, but for its death: it is told to stop, and what it sends meanwhile reaches nobody."""

    pid = None

    def __init__(self, words: WorkerWords, make: Callable[[WorkerPlace], Worker]) -> None:
        self.worker = make(WorkerPlace(words.place, words.number, words.token, words.device.name))
        self.error: Exception | None = None
        self._killed = False
        self._thread = threading.Thread(target=self._run, name=f"worker of {words.device.name}")
        self._thread.start()

    @property
    def ending(self) -> str:
        return "" if self._thread.is_alive() else "killed" if self._killed else f"ended ({self.error})"

    def kill(self) -> None:
        self._killed = True
        self.worker.stop()
        assert self.wait(SECONDS), "a worker does not end"

    def wait(self, within_seconds: float) -> bool:
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:  # told to whoever asks for its ending
            self.error = error


@dataclass
class Threads:
    """Starts workers as threads, and knows them by device."""

    make: Callable[[WorkerPlace], Worker] = Worker
    started: list[ThreadWorker] = field(default_factory=list)
    by_device: dict[str, ThreadWorker] = field(default_factory=dict)

    def __call__(self, words: WorkerWords) -> WorkerProcess:
        worker = self.by_device[words.device.name] = ThreadWorker(words, self.make)
        self.started.append(worker)
        return worker

    def kill(self, device: str) -> None:
        self.by_device[device].kill()


def shape(folder: Path) -> ModelShape:
    return shape_of("tiny", describe(folder), LoadWish(dtype="float32"))


def model_of(folder: Path, options: LoadOptions = EXACT) -> SplitModel:
    return SplitModel(folder, shape(folder), options)


def by_hand(folder: Path, *plans: Sequence[int]) -> PlanDevices:
    """The first of these divisions that has as many parts as there are devices; none: nothing fits."""

    def plan(devices: Sequence[Device]) -> Picture:
        model = shape(folder)
        paced = (replace(one, pace=Pace(1e-3)) for one in planned_devices(devices, {"cpu": 1 << 30}, model))
        planned = tuple(paced)  # links weigh nothing beside it
        for counts in plans:
            if len(counts) == len(devices):
                wish = SplitWish(counts=tuple(counts))
                found = plan_split(model, planned, local_links(devices), DEMAND, wish)
                return Picture(found, Sizes(model, DEMAND), planned)
        raise DoesNotFit(f"tiny does not fit on {len(devices)} devices", 1 << 20)

    return plan


def fleet_of(count: int, budget: str = "64MiB") -> DeviceFleet:
    return DeviceFleet(parse_devices(",".join([f"cpu:{budget}"] * count)))


class Story:
    """Greedy answers from a runner that may lose its devices on the way, as an engine would go on: replayed whole."""

    def __init__(self, runner: SplitRunner, prompt: Sequence[int]) -> None:
        self.runner, self.tokens, self._start = runner, list(prompt), len(prompt)
        self._computed = 0
        self.changes: list[CacheChange] = []
        self.losses = 0

    @property
    def answer(self) -> list[int]:
        return self.tokens[self._start :]

    def go(self, count: int) -> list[int]:
        """So many tokens more."""
        wanted = len(self.tokens) + count
        while len(self.tokens) < wanted:
            if self.runner.restless:
                self.tend()
            try:
                self._step()
            except StageLost:
                self.losses += 1
                self.runner.drop()
                self.tend()
        return self.answer

    def tend(self) -> None:
        change = self.runner.tend(0)
        if change is not None:
            assert change.reset and change.shape == self.runner.cache
            self.changes.append(change)
            self._computed = 0

    def until(self, holds: Callable[[], bool]) -> None:
        """Goes over to whatever comes, as an engine without requests that is woken up."""
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, "it does not come to that"
            self.tend()
            time.sleep(0.005)

    def _step(self) -> None:
        size = self.runner.cache.block_tokens
        row = Row(0, self.tokens[self._computed :], self._computed, range(-(-len(self.tokens) // size)), "logits", 1)
        pick = Pick(0, GREEDY, key=1, written=len(self.tokens) - self._start, history=self.tokens)
        (choice,) = self.runner.run(Step((row,)), [pick]).choices
        self._computed = len(self.tokens)
        self.tokens += choice.tokens


@contextmanager
def split(
    folder: Path,
    *plans: Sequence[int],
    fleet: DeviceFleet | None = None,
    options: SplitOptions = PATIENT,
    threads: Any = None,
    load: LoadOptions = EXACT,
    **changes: Any,
) -> Iterator[tuple[SplitRunner, DeviceFleet, Threads]]:
    """Over as many devices as the first plan has parts."""
    fleet = fleet or fleet_of(len(plans[0]))
    threads = threads or Threads()
    runner = SplitRunner(model_of(folder, load), fleet, by_hand(folder, *plans), replace(options, **changes), threads)
    try:
        yield runner, fleet, threads
    finally:
        runner.close()
        assert all(worker.wait(0) for worker in getattr(threads, "started", ())), "a worker is left"
