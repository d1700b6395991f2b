"""How this node splits models over its devices: what a plan has to promise, over what it is made, and who runs it.

Plans are made over the devices that are present, of whatever other models leave there: a stated budget less what they
hold, or what the last look found free, with what this model itself holds there. Invariants: a plan promises one whole
context at least, and aims at as many as an unsplit model would get; nothing here touches a device, so that any thread
may plan at any time. Torch is imported only where a model is loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_node.device_fleet import DeviceFleet
from gpu_node.device_profiles import Findings
from gpu_node.devices import Device, local_links, planned_devices
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeStopping, UsageError
from gpu_node.load_wish import CPU_STEP_TOKENS, GPU_STEP_TOKENS, LoadWish
from gpu_node.model_folder import ModelDescription, model_files
from gpu_node.model_shape import shape_of
from gpu_node.pipeline.nursery import Nursery
from gpu_node.pipeline.process import StartWorker, WorkerProcess, WorkerWords
from gpu_node.pipeline.split_model import USUAL_SPLIT, PlanDevices, SplitModel, SplitOptions
from gpu_node.plan_picture import Picture
from gpu_node.processors import threads_each
from gpu_node.split import SplitWish, plan_split
from gpu_node.split_plan import RESERVE_SHARE, Demand, DoesNotFit, ModelShape, PlannedDevice, Sizes
from gpu_node.vram import CONTEXTS_WANTED, POOL, Account, Claim

if TYPE_CHECKING:  # their modules are torch's
    from gpu_node.engine.loader import LoadOptions
    from gpu_node.engine.step import ModelRunner

log = logging.getLogger("gpu_node")


@dataclass(frozen=True, slots=True)
class SplitRules:
    """What the settings say of all models."""

    wish: SplitWish = field(default_factory=SplitWish)
    options: SplitOptions = USUAL_SPLIT


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model as it is to be loaded, before anything is read. `context_tokens`: the longest of a request."""

    name: str
    description: ModelDescription
    wish: LoadWish
    context_tokens: int

    @property
    def shape(self) -> ModelShape:
        return shape_of(self.name, self.description, self.wish)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a plan is made over, besides the model: `held` by device and `free` by card are bytes."""

    devices: tuple[Device, ...]
    free: Mapping[str, int]
    held_by_others: Mapping[str, int] = field(default_factory=dict)
    held_by_itself: Mapping[str, int] = field(default_factory=dict)
    most_free: Mapping[str, int] = field(default_factory=dict)  # that was ever seen, by card
    findings: Findings = field(default_factory=Findings)

    def planned(self, shape: ModelShape) -> tuple[PlannedDevice, ...]:
        """Raises `UsageError` for a device of which nobody knows how much memory it has."""
        free = dict(self.free)
        for device in self.devices:
            if device.budget_bytes is None and device.card in free:
                # What the model holds is free for a plan that takes its place; a look may be older than the loading.
                own = free[device.card] + self.held_by_itself.get(device.name, 0)
                free[device.card] = min(own, self.most_free.get(device.card, own))
        return tuple(map(self._beside_others, planned_devices(self.devices, free, shape, self.findings.profiles)))

    def _beside_others(self, device: PlannedDevice) -> PlannedDevice:
        """Of a budget goes what others hold; of what is free it is gone already."""
        if not device.stated:
            return device
        return replace(device, free_bytes=max(device.free_bytes - self.held_by_others.get(device.name, 0), 0))


def step_tokens_over(devices: Sequence[Device]) -> int:
    """Of the largest step, where nobody says it."""
    return GPU_STEP_TOKENS if any(device.kind != "cpu" for device in devices) else CPU_STEP_TOKENS


def stage_threads(devices: Sequence[Device], told: int = 0) -> int:
    """Of each stage on the CPU, which they share. `told`: of all together, 0: as many as there are processors. 0 where
    nothing is to be shared: torch decides."""
    return threads_each(told, sum(device.kind == "cpu" for device in devices))


def demand_of(wanted: Wanted, shape: ModelShape, devices: Sequence[Device]) -> Demand:
    """A cache that is told exactly is promised exactly; else as many contexts as an unsplit model would get."""
    wish, block = wanted.wish, wanted.wish.block_tokens
    step = wish.step_tokens or step_tokens_over(devices)
    token = sum(layer.cache_token_bytes for layer in shape.layers)
    blocks = wish.kv_blocks or (wish.kv_bytes // (block * token) if wish.kv_bytes and token else 0)
    if blocks or wish.kv_bytes:
        return Demand(max(blocks, 1) * block, 1, step, block)
    return Demand(wanted.context_tokens, min(CONTEXTS_WANTED, wish.max_running), step, block)


def picture_of(wanted: Wanted, shape: ModelShape, around: Surroundings, how: SplitWish) -> Picture:
    """Raises `DoesNotFit`, and `ModelError` for devices or a split by hand that do not suit the model."""
    devices = around.devices
    if wanted.wish.device != "auto":
        devices = tuple(one for one in devices if (one.kind == "cpu") == (wanted.wish.device == "cpu"))
    if not devices:
        kind = "" if wanted.wish.device == "auto" else f" {wanted.wish.device}"
        raise ModelError(f"there is no{kind} device left that could hold a part of {wanted.name}")
    try:
        planned = replace(around, devices=devices).planned(shape)
        demand = demand_of(wanted, shape, devices)
        return Picture(plan_split(shape, planned, local_links(devices), demand, how), Sizes(shape, demand), planned)
    except UsageError as error:
        raise ModelError(f"{wanted.name} cannot be split: {error}") from error


def whole_picture_of(wanted: Wanted, shape: ModelShape, around: Surroundings, how: SplitWish) -> Picture:
    """On the one device with the most room. Raises as `picture_of`."""
    found: list[Picture] = []
    refused: ModelError | DoesNotFit | None = None
    for device in around.devices:
        try:
            found.append(picture_of(wanted, shape, replace(around, devices=(device,)), replace(how, counts=())))
        except (ModelError, DoesNotFit) as error:
            refused = error if refused is None or isinstance(error, DoesNotFit) else refused
    if not found:
        raise refused or ModelError(f"there is no device left that could hold {wanted.name}")
    return max(found, key=lambda picture: picture.plan.capacity_tokens)


def is_splittable(folder: Path) -> bool:
    """Are there own layers for this model, which alone can be apart? Imports torch; raises `ModelError` for files that
    are none."""
    from gpu_node.engine.layers.recipe import NotCovered, recipe_of
    from gpu_node.engine.loader import open_source, plain_failures

    with plain_failures(folder.name), closing(open_source(model_files(folder))) as source:
        return not isinstance(recipe_of(source.config), NotCovered)


def claim_of(picture: Picture) -> Claim:
    """What the plan takes of all devices together."""
    shares = [share for share in picture.shares if share.stage is not None]
    return Claim(sum(share.weights_bytes for share in shares), sum(share.cache_bytes for share in shares))


class Splitting:
    """Of one node; from any thread."""

    def __init__(
        self,
        fleet: DeviceFleet,
        rules: SplitRules = SplitRules(),
        findings: Callable[[], Findings] = Findings,
        start: StartWorker | None = None,
    ) -> None:
        """`findings` is asked once, where plans need what only a probe can say; it may take its time. `start` starts
        workers; else they are copies of one template."""
        self.fleet, self._rules, self._ask = fleet, rules, findings
        self.identify: Callable[[str], str | None] = lambda _: None  # what the driver calls a card
        self._nursery = Nursery()
        self._start = start or self._nursery.start
        self._hiring = threading.Lock()
        self._workers: list[WorkerProcess] = []  # that run, as far as was looked
        self._stopping = threading.Event()
        self._most_free: dict[str, int] = {}
        self._findings = Findings()
        self._asking = threading.Lock()
        self._asked = False

    def look(self) -> None:
        """Before the first plan, where time does not matter: probes if paces or free memory are to be had no other
        way."""
        with self._asking:
            if not self._asked and self._needs_findings():
                self._findings = self._ask()
                self._asked = True

    def _needs_findings(self) -> bool:
        known = self.fleet.free_bytes()
        unknown = any(one.budget_bytes is None and one.card not in known for one in self.fleet.present())
        return unknown or self._rules.wish.strategy == "profiled"

    def stop(self) -> None:
        """No plan is made and no worker started any more, so that who loads or recovers comes to an end."""
        self._stopping.set()

    def close(self) -> bool:
        """All workers are gone when this returns: whoever still waits for one, in the middle of a loading, gives up.
        Was there any?"""
        self.stop()
        self._nursery.close()
        with self._hiring:
            left = self._workers
        for worker in left:
            worker.kill()
        return bool(left)

    def start(self, words: WorkerWords) -> WorkerProcess:
        """Raises OSError where the system starts none, and when the node stops."""
        with self._hiring:
            if self._stopping.is_set():
                raise OSError(str(NodeStopping()))
            worker = self._start(replace(words, identity=self.identify(words.device.card)))
            self._workers = [*(one for one in self._workers if not one.ending), worker]
        return worker

    def planner(self, wanted: Wanted, whole: bool = False) -> PlanDevices:
        """`whole`: it cannot be split, and lies on one of the devices or on none."""
        shape, pictured = wanted.shape, whole_picture_of if whole else picture_of

        def plan(devices: Sequence[Device]) -> Picture:
            if self._stopping.is_set():
                raise NodeStopping()
            self.look()  # a card may have joined of which only a probe can say how much memory is free
            return pictured(wanted, shape, self._around(wanted.name, devices), self._rules.wish)

        return plan

    def claim(self, wanted: Wanted) -> Claim:
        """What it takes beside what is there; where it does not fit beside it, the least it could do with alone.

        Raises `DoesNotFit` where not even that is there."""
        self.look()
        devices, shape = self.fleet.present(), wanted.shape
        around = self._around(wanted.name, devices)
        try:
            return claim_of(picture_of(wanted, shape, around, self._rules.wish))
        except DoesNotFit:
            if not any(around.held_by_others.values()):
                raise
        free = {card: self._most_free.get(card, size) for card, size in around.free.items()}
        one = replace(wanted, wish=replace(wanted.wish, max_running=1))
        return claim_of(picture_of(one, shape, replace(around, free=free, held_by_others={}), self._rules.wish))

    def load(self, wanted: Wanted, folder: Path, options: LoadOptions) -> ModelRunner:
        """In the engine's thread. Raises `DoesNotFit`, `ModelError`, and `DeviceOutOfMemory` where it may fit once
        others have left."""
        self.look()
        plan = self.planner(wanted)
        try:
            plan(self.fleet.present())  # before anything heavy is imported
            if not is_splittable(folder):
                plan = self.planner(wanted, whole=True)
            model = SplitModel(folder, wanted.shape, options, self._paces_measured())
            return _runner(model, self.fleet, plan, self._rules.options, self.start)
        except DoesNotFit as error:
            if any(self._around(wanted.name, self.fleet.present()).held_by_others.values()):
                raise DeviceOutOfMemory(str(error)) from error
            raise

    def sized(self, account: Account) -> Account:
        """The account of all devices, with what they are by now."""
        if not account.is_pool:
            return account
        devices = self.fleet.present()
        around = self._around("", devices)
        free = {card: self._most_free.get(card, size) for card, size in around.free.items()}
        budgets = [
            device.budget_bytes
            if device.budget_bytes is not None
            else int(free.get(device.card, 0) * (1 - RESERVE_SHARE))
            for device in devices
        ]
        return replace(account, budget_bytes=sum(budgets), gpus=sum(device.kind != "cpu" for device in devices))

    @property
    def account(self) -> Account:
        return self.sized(Account(POOL, 0))

    def _paces_measured(self) -> bool:
        """Seconds of plans are seconds: of every device something was measured."""
        profiles = self._findings.profiles
        return all(device.card in profiles for device in self.fleet.present())

    def _around(self, model: str, devices: Sequence[Device]) -> Surroundings:
        others: dict[str, int] = {}
        itself: dict[str, int] = {}
        for one in self.fleet.devices:
            for holder, size in one.held:
                table = itself if holder == model else others
                table[one.name] = table.get(one.name, 0) + size
        findings = self._findings
        free = {one.card: one.free_bytes for one in findings.devices} | dict(self.fleet.free_bytes())
        for card, size in free.items():
            self._most_free[card] = max(size, self._most_free.get(card, 0))
        return Surroundings(tuple(devices), free, others, itself, dict(self._most_free), findings)


def _runner(
    model: SplitModel, fleet: DeviceFleet, plan: PlanDevices, options: SplitOptions, start: StartWorker
) -> ModelRunner:
    from gpu_node.pipeline.split_runner import SplitRunner

    return SplitRunner(model, fleet, plan, options, start)
