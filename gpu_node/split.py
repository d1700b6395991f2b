"""Which of unequal devices holds which layers. Pure: `plan_split(model, devices, links) -> Plan`, or it does not fit.

Split and cache are solved together: every token needs a place on every stage, so what counts is the least capacity over
the stages (vLLM #6920). Invariants of every plan: each layer exactly once, in order; no stage beyond its device; room
for one whole context at least. Splitting what one device holds costs a link and gains nothing unless the paces say so,
so one device is an allowed answer. Must not know torch, files or how devices are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, permutations
from typing import Literal

from gpu_node.errors import UsageError
from gpu_node.split_plan import (
    Demand,
    DoesNotFit,
    LinkPace,
    Links,
    ModelShape,
    Plan,
    PlannedDevice,
    Sizes,
    shortage,
)
from gpu_node.vram import BITS_OF_WEIGHTS, gigabytes

Strategy = Literal["vram", "balanced", "profiled"]
Goal = Literal["latency", "throughput"]
# So many devices are tried in every order; more only in the orders that are likely to be good.
TRIED_IN_EVERY_ORDER = 4
# Of the tokens that some split could keep a profiled one keeps so many, and gives up the others for being quicker:
# budgets that do not hold all that is wanted would leave it no choice otherwise.
PROFILED_SHARE = 0.5
# A split must be so much quicker than one device: paces are measurements.
WORTH_IT = 0.95
Counts = tuple[tuple[int, int], ...]  # (number of the device, layers), in the order of the stages


@dataclass(frozen=True, slots=True)
class SplitWish:
    """`counts` is a split by hand: layers for each device in turn, 0 leaves one out."""

    strategy: Strategy = "balanced"
    goal: Goal = "latency"
    counts: tuple[int, ...] = ()


def plan_split(
    model: ModelShape,
    devices: Sequence[PlannedDevice],
    links: Links,
    demand: Demand,
    wish: SplitWish = SplitWish(),
) -> Plan:
    """The best plan by the strategy. Raises `DoesNotFit`, and `UsageError` for a split by hand that is none."""
    if not devices:
        raise UsageError("there is no device to plan for")
    table = Planner(Sizes(model, demand), tuple(devices), links)
    if wish.counts:
        return table.by_hand(wish.counts)
    plans = list(table.candidates(wish))
    if not plans:
        raise table.too_small()
    return table.best(plans, wish)


class Planner:
    def __init__(self, sizes: Sizes, devices: tuple[PlannedDevice, ...], links: Links) -> None:
        self._sizes, self._devices, self._links = sizes, devices, links
        self._demand = sizes.demand

    def by_hand(self, counts: Sequence[int]) -> Plan:
        total = self._sizes.layers
        if len(counts) > len(self._devices) or min(counts) < 0 or sum(counts) != total:
            raise UsageError(f"{list(counts)} does not give {total} layers to at most {len(self._devices)} devices")
        plan = self._plan(tuple((number, count) for number, count in enumerate(counts) if count), "by hand")
        if plan.capacity_tokens < self._demand.least_tokens:
            raise self.too_small(plan)
        return plan

    def candidates(self, wish: SplitWish) -> Iterator[Plan]:
        """Plans that fit: on each single device, and the strategy's own for each order of all devices."""
        least = self._demand.least_tokens
        singles = [self._plan(((number, self._sizes.layers),), wish.strategy) for number in range(len(self._devices))]
        shares = (self._split(order, wish) for order in orders(self._devices))
        splits = (self._plan(counts, wish.strategy) for counts in shares if len(counts) > 1)
        for plan in (*singles, *splits):
            if plan.capacity_tokens >= least:
                yield plan

    def best(self, plans: Sequence[Plan], wish: SplitWish) -> Plan:
        """Room for what is enough first, then time where it is known, then the fewest stages, then the most room."""
        wanted = self._enough(wish)
        single = max((plan for plan in plans if len(plan.stages) == 1), key=self._merit(wish), default=None)
        found = max(plans, key=self._merit(wish))
        if single is None or single is found:
            reason = "one device holds all of it" if single is found else "no single device holds it with its cache"
            return replace(found, reason=reason)
        if single.capacity_tokens < min(wanted, found.capacity_tokens):
            return replace(found, reason=f"one device would keep {single.capacity_tokens:,} tokens only")
        alone, split = _seconds(single, wish.goal), _seconds(found, wish.goal)
        if wish.strategy == "profiled" and alone is not None and split is not None and split < alone * WORTH_IT:
            return replace(found, reason=f"{alone / split:.2f} times as quick as on one device")
        return replace(single, reason="one device holds all of it, and a split would not be quicker")

    def too_small(self, plan: Plan | None = None) -> DoesNotFit:
        """What is missing for one context, spread as well as can be, and what would help."""
        least = self._demand.least_tokens
        tried = [plan] if plan else [self._plan(counts, "") for counts in self._nearest()]
        nearest = min(tried, key=lambda one: self._missing(one, least))
        short = self._missing(nearest, least)
        have = ", ".join(f"{one.name} {gigabytes(one.usable_bytes)}" for one in self._devices)
        text = (
            f"{self._sizes.shape.name} does not fit: {shortage(short)}; {self._needs(nearest, least)}, "
            f"and there is {have}"
        )
        remedies = tuple(self._remedies(short))
        return DoesNotFit(". ".join((text, *remedies)), short, remedies)

    def _needs(self, plan: Plan, tokens: int) -> str:
        """All stages together: a split keeps tied weights twice, and each stage its own activations."""
        sizes = self._sizes
        weights = sum(stage.weights_bytes for stage in plan.stages)
        steps = sum(sizes.activations(stage.behind) for stage in plan.stages)
        cache = tokens * sizes.cache_token(0, sizes.layers)
        where = f" over {len(plan.stages)} devices" if len(plan.stages) > 1 else ""
        return (
            f"it needs {gigabytes(weights + cache + steps)}{where} ({gigabytes(weights)} for weights, "
            f"{gigabytes(cache)} for a context of {tokens:,} tokens, {gigabytes(steps)} for a step)"
        )

    def _remedies(self, short: int) -> Iterator[str]:
        context = self._longest_context()
        if context >= self._demand.least_tokens:
            yield "Another split would fit"
            return
        if context:
            yield f"A context of {context:,} tokens would fit"
        yield f"A further device, or one larger, with {gigabytes(short)} more to use would make it fit"
        for name, bits in BITS_OF_WEIGHTS.items():
            share = bits / self._sizes.shape.weight_bits
            if share < 1 and self._fits_at(share):
                yield f"Weights as {name} would fit"
                return

    def _longest_context(self) -> int:
        """In whole blocks; 0 where not even one block fits."""
        plans = [self._plan(counts, "") for counts in self._nearest()]
        return max((plan.capacity_tokens for plan in plans), default=0)

    def _fits_at(self, share: float) -> bool:
        shape = self._sizes.shape
        layers = tuple(replace(one, weights_bytes=int(one.weights_bytes * share)) for one in shape.layers)
        lighter = Planner(Sizes(replace(shape, layers=layers), self._demand), self._devices, self._links)
        return any(True for _ in lighter.candidates(SplitWish()))

    def _nearest(self) -> list[Counts]:
        """The splits that come closest to fitting."""
        shares = [_proportional(self._sizes, self._devices, order) for order in orders(self._devices)]
        singles: list[Counts] = [((number, self._sizes.layers),) for number in range(len(self._devices))]
        widest = [self._widest(order) for order in orders(self._devices)]
        return [counts for counts in (*singles, *shares, *widest) if counts]

    def _missing(self, plan: Plan, tokens: int) -> int:
        named = {device.name: device for device in self._devices}
        return sum(self._sizes.missing(named[one.device], one.first, one.behind, tokens) for one in plan.stages)

    def _split(self, order: Sequence[int], wish: SplitWish) -> Counts:
        """The strategy's layers for the devices in this order; empty where none fits."""
        match wish.strategy:
            case "vram":
                counts = self._mended(_proportional(self._sizes, self._devices, order))
                fits = self._plan(counts, "").capacity_tokens >= self._demand.least_tokens
                return counts if fits else self._widest(order)
            case "balanced":
                return self._widest(order)
            case "profiled":
                if any(self._devices[number].pace is None for number in order):
                    raise UsageError("the strategy 'profiled' needs the measured pace of every device")
                return self._quickest(order, wish.goal)

    def _mended(self, counts: Counts) -> Counts:
        """Moves a layer at a time from a stage without room to a neighbour that has some, until all have."""
        for _ in range(self._sizes.layers * len(counts)):
            plan = self._plan(counts, "")
            poor = [at for at, one in enumerate(plan.stages) if one.capacity_tokens < self._demand.least_tokens]
            if not poor:
                return counts
            at = poor[0]
            near = [other for other in (at - 1, at + 1) if 0 <= other < len(counts) and counts[at][1] > 1]
            if not near:
                return counts
            to = max(near, key=lambda other: plan.stages[other].capacity_tokens)
            if plan.stages[to].capacity_tokens < self._demand.least_tokens:
                return counts
            counts = _moved(counts, at, to)
        return counts

    def _widest(self, order: Sequence[int]) -> Counts:
        """The split of this order whose poorest stage keeps the most tokens: bisection over what each must keep."""
        block = self._demand.block_tokens
        low, high = 0, -(-self._demand.wanted_tokens // block)
        if (counts := self._filled(order, high * block)) is not None:
            return self._evened(counts)
        found: Counts = ()
        while low <= high:
            middle = (low + high) // 2
            counts = self._filled(order, middle * block)
            if counts is None:
                high = middle - 1
            else:
                found, low = counts, middle + 1
        return found

    def _evened(self, counts: Counts) -> Counts:
        """All that is wanted fits: then by memory, as long as that fits too, so that no device is full needlessly."""
        order = [number for number, _ in counts]
        even = _proportional(self._sizes, self._devices, order)
        if self._plan(even, "").capacity_tokens >= self._demand.wanted_tokens:
            return even
        return counts

    def _filled(self, order: Sequence[int], tokens: int) -> Counts | None:
        """Each device in turn takes as many layers as it can keep `tokens` for: where any split can, this one does."""
        sizes, first = self._sizes, 0
        counts: list[tuple[int, int]] = []
        for number in order:
            device, behind = self._devices[number], first
            if sizes.capacity(device, first, sizes.layers) >= tokens:
                return (*counts, (number, sizes.layers - first))
            while behind + 1 < sizes.layers and sizes.capacity(device, first, behind + 1) >= tokens:
                behind += 1
            if behind > first:
                counts.append((number, behind - first))
                first = behind
        return None

    def _quickest(self, order: Sequence[int], goal: Goal) -> Counts:
        """Dynamic programming over (device, first layer): least sum of times, or least longest time, with room."""
        sizes, least = self._sizes, self._profiled_tokens
        join: Callable[[float, float], float] = (lambda a, b: a + b) if goal == "latency" else max
        # best[first][last device]: the way to have layers below `first` placed, the last of them on that device
        best: list[dict[int, tuple[float, Counts]]] = [{} for _ in range(sizes.layers + 1)]
        best[0][-1] = (0.0, ())
        for at, number in enumerate(order):
            device = self._devices[number]
            for first in range(sizes.layers):
                before = {last: way for last, way in best[first].items() if last < at}
                for behind in range(first + 1, sizes.layers + 1) if before else ():
                    if sizes.capacity(device, first, behind) < least:
                        continue
                    own = sizes.seconds(device, first, behind) or 0.0
                    for last, (spent, counts) in before.items():
                        hop = 0.0 if last < 0 else self._hop(order[last], number)
                        total = join(join(spent, hop), own)
                        if at not in best[behind] or total < best[behind][at][0]:
                            best[behind][at] = (total, (*counts, (number, behind - first)))
        ways = best[sizes.layers].values()
        return min(ways, key=lambda way: way[0])[1] if ways else ()

    def _enough(self, wish: SplitWish) -> int:
        """More room than that is not worth any time."""
        return self._profiled_tokens if wish.strategy == "profiled" else self._demand.wanted_tokens

    @cached_property
    def _profiled_tokens(self) -> int:
        """What every stage must keep where time counts."""
        block = self._demand.block_tokens
        most = max((self._plan(counts, "").capacity_tokens for counts in self._roomy()), default=0)
        share = int(most * PROFILED_SHARE) // block * block
        return max(share, self._demand.least_tokens)

    def _roomy(self) -> Iterator[Counts]:
        yield from (((number, self._sizes.layers),) for number in range(len(self._devices)))
        yield from (counts for order in orders(self._devices) if (counts := self._widest(order)))

    def _plan(self, counts: Counts, strategy: str) -> Plan:
        sizes, stages, first = self._sizes, [], 0
        for number, count in counts:
            stages.append(sizes.stage(self._devices[number], first, first + count))
            first += count
        room = min(stage.capacity_tokens for stage in stages)
        block = self._demand.block_tokens
        capacity = min(max(room, 0) // block * block, self._demand.wanted_tokens)
        times = [stage.seconds for stage in stages]
        numbers = [number for number, _ in counts]
        hops = [self._hop(one, other) for one, other in pairwise(numbers)]
        known = [seconds for seconds in times if seconds is not None]
        if len(known) < len(times):
            return Plan(tuple(stages), capacity, strategy)
        return Plan(tuple(stages), capacity, strategy, sum(known) + sum(hops), max((*known, *hops)))

    def _hop(self, one: int, other: int) -> float:
        names = self._devices[one].name, self._devices[other].name
        pace = self._links.get(names) or self._links.get(names[::-1]) or LinkPace()
        return pace.seconds(self._sizes.step_bytes(1))

    def _merit(self, wish: SplitWish) -> Callable[[Plan], tuple[float, ...]]:
        enough = self._enough(wish)

        def merit(plan: Plan) -> tuple[float, ...]:
            seconds = _seconds(plan, wish.goal) if wish.strategy == "profiled" else None
            spare = min(stage.capacity_tokens for stage in plan.stages)
            return min(plan.capacity_tokens, enough), -(seconds or 0.0), -len(plan.stages), spare

        return merit


def orders(devices: Sequence[PlannedDevice]) -> Iterable[tuple[int, ...]]:
    """In which order the devices may stand in the pipeline."""
    numbers = tuple(range(len(devices)))
    if len(devices) <= TRIED_IN_EVERY_ORDER:
        return tuple(permutations(numbers))
    by_room = tuple(sorted(numbers, key=lambda number: -devices[number].usable_bytes))
    return tuple(dict.fromkeys((numbers, by_room, by_room[::-1])))


def _proportional(sizes: Sizes, devices: Sequence[PlannedDevice], order: Sequence[int]) -> Counts:
    """Layers by usable memory after what the ends take, by the largest remainder; who gets none is left out."""
    room = []
    for at, number in enumerate(order):
        ends = sizes.shape.ends_bytes(at == 0, at == len(order) - 1)
        room.append(max(devices[number].usable_bytes - ends, 0))
    whole = sum(room)
    if not whole:
        return ((order[0], sizes.layers),)
    shares = [sizes.layers * one / whole for one in room]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(order)), key=lambda at: (counts[at] - shares[at], at))
    for at in by_remainder[: sizes.layers - sum(counts)]:
        counts[at] += 1
    return tuple((number, count) for number, count in zip(order, counts, strict=True) if count)


def _moved(counts: Counts, source: int, target: int) -> Counts:
    changed = [list(one) for one in counts]
    changed[source][1] -= 1
    changed[target][1] += 1
    return tuple((number, count) for number, count in changed)


def _seconds(plan: Plan, goal: Goal) -> float | None:
    return plan.latency_seconds if goal == "latency" else plan.period_seconds
