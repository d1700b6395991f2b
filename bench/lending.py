"""What lending buys where one stage has little memory: requests in flight and tokens/s, beside giving way.

One model over two stages in processes of their own, half of the layers each. The first has room for a few requests, the
second for all of them and for what the first lacks; with short contexts, and with longer ones, where computing again is
dearer. Three engines take turns within each round, and prompts are new in
every round: blocks are lent; nothing is lent, so that requests wait and give way to each other (preemption, computed
again from the beginning); and for comparison a first stage with room for everybody. All answers are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contenders.potluck_split import Subject
from bench.contenders.protocol import Load, Outcome
from bench.rig.models import write_random_llama
from bench.rig.report import Report, at_least, median, table
from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import Device, local_links, parse_devices, planned_devices
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.load_wish import LoadWish
from gpu_node.memory.lending_policy import USUAL_POLICY
from gpu_node.model_folder import describe
from gpu_node.model_shape import shape_of
from gpu_node.model_store import default_cache
from gpu_node.pipeline.split_model import PlanDevices
from gpu_node.plan_picture import Picture
from gpu_node.split import SplitWish, plan_split
from gpu_node.split_plan import Demand, Sizes

LENT, WITHOUT, ROOMY = "lending", "without lending", "room for all"
LAYERS = (4, 4)
BLOCK_TOKENS, STEP_TOKENS = 16, 128
DEPTH = 2  # steps under way: the same for all, so that nothing but memory differs
SAMPLE_SECONDS = 0.02
USUAL_MIXES = ("12 x 48 + 48, room for 3", "8 x 256 + 96, room for 4")
SLACK = 1.02  # of a budget: what a plan estimates and what is loaded differ by headers and roundings


@dataclass(frozen=True, slots=True)
class Mix:
    requests: int
    prompt: int
    tokens: int
    short_requests: int  # for so many the small stage has room

    @staticmethod
    def of(text: str) -> Mix:
        """As in "12 x 48 + 48, room for 3"."""
        found = re.fullmatch(r"(\d+) x (\d+) \+ (\d+), room for (\d+)", text)
        if found is None:
            raise SystemExit(f'"{text}" is not like "{USUAL_MIXES[0]}"')
        return Mix(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.requests} x {self.prompt} + {self.tokens}, room for {self.short_requests}"

    @property
    def context(self) -> int:
        return self.prompt + self.tokens + BLOCK_TOKENS

    @property
    def blocks(self) -> int:
        """Of one request."""
        return -(-self.context // BLOCK_TOKENS)

    def load(self, draw: random.Random) -> Load:
        prompts = [[draw.randrange(10, 4000) for _ in range(self.prompt)] for _ in range(self.requests)]
        return Load(prompts, [self.tokens] * self.requests)


@dataclass(slots=True)
class Seen:
    """One entry a round."""

    rates: list[float] = field(default_factory=list)  # tokens/s
    running: list[float] = field(default_factory=list)  # requests, on the mean while any runs
    preemptions: list[int] = field(default_factory=list)
    lent_bytes: int = 0


class Models:
    """The same model in front of devices of any budget."""

    def __init__(self, folder: Path, mix: Mix) -> None:
        self._folder, self._mix = folder, mix
        self._shape = shape_of("random", describe(folder), LoadWish(dtype="float32"))
        self._demand = Demand(mix.context, 1, STEP_TOKENS, BLOCK_TOKENS)

    def plan(self) -> PlanDevices:
        def made(devices: Sequence[Device]) -> Picture:
            planned = planned_devices(devices, {}, self._shape)
            found = plan_split(self._shape, planned, local_links(devices), self._demand, SplitWish(counts=LAYERS))
            return Picture(found, Sizes(self._shape, self._demand), planned)

        return made

    def budgets(self, short_blocks: int) -> tuple[int, int]:
        """Of the first device, with so many blocks of its own; and of the second, with all of them and more to lend."""
        picture = self.plan()(parse_devices("cpu:8GiB,cpu:8GiB"))
        sizes, wanted = picture.sizes, self._mix.requests * self._mix.blocks
        first, second = (stage.weights_bytes + sizes.activations(stage.behind) for stage in picture.plan.stages)
        token = [sum(layer.cache_token_bytes for layer in self._shape.layers[at : at + 4]) for at in (0, 4)]
        block = [size * BLOCK_TOKENS for size in token]
        lent = max(wanted - short_blocks, 0) * block[0]
        spare = (second + wanted * block[1] + lent) / USUAL_POLICY.threshold
        return int(first * SLACK) + short_blocks * block[0], int(spare * SLACK)

    def load(self, short_blocks: int, lends: bool) -> Callable[[], Any]:
        from gpu_node.engine.cache_size import CacheOptions
        from gpu_node.engine.loader import LoadOptions
        from gpu_node.pipeline.split_model import SplitModel, SplitOptions
        from gpu_node.pipeline.split_runner import SplitRunner

        budgets = self.budgets(short_blocks)
        two = parse_devices("cpu:1GiB,cpu:1GiB")
        devices = [replace(one, budget_bytes=size) for one, size in zip(two, budgets, strict=True)]
        cache = CacheOptions(block_tokens=BLOCK_TOKENS, context=self._mix.context, max_running=self._mix.requests)
        kernels = default_cache({}) / "kernels"
        options = LoadOptions("cpu", "float32", threads=1, cache=cache, kernel_folder=kernels)
        how = SplitOptions(depth=DEPTH, lending=USUAL_POLICY if lends else None)
        model = SplitModel(self._folder, self._shape, options)
        return lambda: SplitRunner(model, DeviceFleet(devices), self.plan(), how)


@asynccontextmanager
async def engine_of(load: Callable[[], Any], mix: Mix) -> AsyncIterator[Engine]:
    options = EngineOptions(max_running=mix.requests, max_drafts=0, step_tokens=STEP_TOKENS)
    engine = Engine(load, options=options)
    await engine.load()
    try:
        yield engine
    finally:
        await engine.close()


async def measure(engine: Engine, load: Load, seen: Seen) -> Outcome:
    before, running = engine.stats().preemptions, []

    async def watch() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            running.append(engine.stats().running)
            status = engine.runner.pipeline if engine.runner is not None else None
            if status is not None and status.lending is not None:
                seen.lent_bytes = max(seen.lent_bytes, status.lending.lent_bytes)

    watching = asyncio.create_task(watch())
    outcome = await Subject(engine).run(load)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    print(f"{sum(map(len, outcome.tokens))} tokens in {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
    seen.rates.append(sum(map(len, outcome.tokens)) / outcome.seconds)
    seen.running.append(sum(running) / max(len(running), 1))
    seen.preemptions.append(engine.stats().preemptions - before)
    return outcome


async def measured(folder: Path, mix: Mix, rounds: int) -> tuple[dict[str, Seen], bool]:
    """By way; and whether all ways have given the same answers."""
    models, draw, same = Models(folder, mix), random.Random(6), True
    short, all_blocks = mix.short_requests * mix.blocks, mix.requests * mix.blocks
    ways = {
        LENT: models.load(short, True),
        WITHOUT: models.load(short, False),
        ROOMY: models.load(all_blocks, False),
    }
    found = {name: Seen() for name in ways}
    async with AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(engine_of(load, mix)) for name, load in ways.items()}
        for engine in engines.values():  # the first one finds cold programs, and borrows anew
            await measure(engine, mix.load(draw), Seen())
        for _ in range(rounds):
            load = mix.load(draw)
            outcomes = [await measure(engines[name], load, found[name]) for name in ways]
            same &= all(outcome.tokens == outcomes[0].tokens for outcome in outcomes)
    return found, same


def show(mix: Mix, found: dict[str, Seen]) -> None:
    rows = [
        [name, median(seen.running), median(seen.rates), median(seen.preemptions), f"{seen.lent_bytes / 2**20:.1f}"]
        for name, seen in found.items()
    ]
    print(f"\nRequests x prompt + answer: {mix} of them in the first stage")
    print(table(["a short first stage", "in flight", "tokens/s", "preemptions", "lent MiB"], rows))


def judge(report: Report, mix: Mix, found: dict[str, Seen], same: bool) -> None:
    lent, without = found[LENT], found[WITHOUT]
    flight = median(lent.running) / max(median(without.running), 1e-9)
    # A machine that others use as well is faster in one round than in the next: what is compared is within rounds.
    pace = median([one / other for one, other in zip(lent.rates, without.rates, strict=True)])
    report.targets += [
        at_least(f"{mix}: requests in flight, lending to without", flight, 1.5, " x"),
        at_least(f"{mix}: tokens/s, lending to without", pace, 1.0, " x"),
        at_least(f"{mix}: all answers the same, of 1", float(same), 1.0),
    ]
    report.figures[str(mix)] = {
        name: {"tokens_per_second": seen.rates, "in_flight": seen.running, "preemptions": seen.preemptions,
               "lent_bytes": seen.lent_bytes}
        for name, seen in found.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mix", action="append", help="requests x prompt + answer, and for how many there is room")
    parser.add_argument("--no-write", action="store_true", help="do not write the result file")
    arguments = parser.parse_args()
    mixes = [Mix.of(text) for text in arguments.mix or USUAL_MIXES]
    report = Report("lending", vars(arguments))
    folder = write_random_llama(default_cache({}) / "bench" / "random-llama-30m")
    for mix in mixes:
        found, same = asyncio.run(measured(folder, mix, arguments.rounds))
        show(mix, found)
        judge(report, mix, found, same)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
