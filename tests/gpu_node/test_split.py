"""Plans over unequal devices: what every plan keeps, and that each strategy finds the best there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.errors import UsageError
from gpu_node.split import PROFILED_SHARE, WORTH_IT, Planner, SplitWish, orders, plan_split
from gpu_node.split_plan import (
    Demand,
    DoesNotFit,
    LayerSize,
    LinkPace,
    ModelShape,
    Pace,
    Plan,
    PlannedDevice,
    Sizes,
)

MB = 1_000_000
SHAPE = ModelShape("m", (LayerSize(10 * MB, 1000),) * 8, 4 * MB, 4 * MB, 64, 1000)
DEMAND = Demand(1024, 4, step_tokens=16)


def device(name: str, megabytes: float, seconds: float | None = None) -> PlannedDevice:
    """`megabytes` are what it can use."""
    pace = None if seconds is None else Pace(seconds)
    found = PlannedDevice(name, int(megabytes * MB / 0.9) + 2, pace=pace)
    assert abs(found.usable_bytes - megabytes * MB) < 3
    return found


def capacity_of(sizes: Sizes, devices: list[PlannedDevice], counts: tuple[tuple[int, int], ...]) -> int:
    """Told anew from the sizes alone, as the slow and obvious reference."""
    first, least = 0, sizes.demand.wanted_tokens
    for number, count in counts:
        least = min(least, sizes.capacity(devices[number], first, first + count))
        first += count
    return max(least, 0) // sizes.demand.block_tokens * sizes.demand.block_tokens


def every_split(layers: int, devices: int) -> list[tuple[tuple[int, int], ...]]:
    found = []
    for many in range(1, devices + 1):
        for order in permutations(range(devices), many):
            for counts in compositions(layers, many):
                found.append(tuple(zip(order, counts, strict=True)))
    return found


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(total,)] if total else []
    return [(first, *rest) for first in range(1, total) for rest in compositions(total - first, parts - 1)]


def check(plan: Plan, shape: ModelShape, devices: list[PlannedDevice], demand: Demand) -> None:
    sizes, named = Sizes(shape, demand), {one.name: one for one in devices}
    assert plan.stages[0].first == 0 and plan.stages[-1].behind == len(shape.layers)
    for one, after in zip(plan.stages, plan.stages[1:], strict=False):
        assert one.behind == after.first
    assert all(stage.layers > 0 for stage in plan.stages)
    assert len({stage.device for stage in plan.stages}) == len(plan.stages)
    assert demand.least_tokens <= plan.capacity_tokens <= demand.wanted_tokens
    assert plan.capacity_tokens % demand.block_tokens == 0
    for stage in plan.stages:
        own = sum(layer.weights_bytes for layer in shape.layers[stage.first : stage.behind])
        first, last = stage.first == 0, stage.behind == len(shape.layers)
        assert stage.weights_bytes == own + shape.ends_bytes(first, last)
        token = sum(layer.cache_token_bytes for layer in shape.layers[stage.first : stage.behind])
        held = stage.weights_bytes + plan.capacity_tokens * token + sizes.activations(stage.behind)
        assert held <= named[stage.device].usable_bytes


shapes = st.builds(
    lambda sizes, embedding, head, tied: ModelShape(
        "m",
        tuple(LayerSize(w * MB, c) for w, c in sizes),
        embedding * MB,
        (embedding if tied else head) * MB,
        64,
        1000,
        tied,
    ),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3000)), min_size=1, max_size=6),
    st.integers(0, 30),
    st.integers(0, 30),
    st.booleans(),
)
fleets = st.lists(st.tuples(st.integers(1, 90), st.floats(0.1, 4.0)), min_size=1, max_size=3).map(
    lambda rows: [device(f"d{number}", size, pace) for number, (size, pace) in enumerate(rows)]
)
demands = st.builds(Demand, st.integers(1, 3000), st.integers(1, 8), st.just(16), st.sampled_from([8, 16, 32]))


@settings(max_examples=150, deadline=None)
@given(shapes, fleets, demands, st.sampled_from(["vram", "balanced"]))
def test_a_plan_is_found_where_there_is_one_and_keeps_its_promises(shape, devices, demand, strategy):
    sizes = Sizes(shape, demand)
    possible = max(capacity_of(sizes, devices, split) for split in every_split(len(shape.layers), len(devices)))
    if possible < demand.least_tokens:
        with pytest.raises(DoesNotFit) as refusal:
            plan_split(shape, devices, {}, demand, SplitWish(strategy))
        assert refusal.value.short_bytes > 0
        return
    plan = plan_split(shape, devices, {}, demand, SplitWish(strategy))
    check(plan, shape, devices, demand)
    if strategy == "balanced":
        assert plan.capacity_tokens == possible


@settings(max_examples=100, deadline=None)
@given(shapes, fleets, demands, st.sampled_from(["latency", "throughput"]), st.floats(0.0, 5.0))
def test_profiled_is_the_quickest_of_those_with_enough_room(shape, devices, demand, goal, hop):
    sizes = Sizes(shape, demand)
    splits = every_split(len(shape.layers), len(devices))
    possible = max(capacity_of(sizes, devices, split) for split in splits)
    if possible < demand.least_tokens:
        return
    links = {(a.name, b.name): LinkPace(hop) for a in devices for b in devices if a is not b}
    plan = plan_split(shape, devices, links, demand, SplitWish("profiled", goal))
    check(plan, shape, devices, demand)
    share = int(possible * PROFILED_SHARE) // demand.block_tokens * demand.block_tokens
    enough = max(share, demand.least_tokens)
    assert plan.capacity_tokens >= enough
    quickest = min(
        seconds_of(sizes, devices, split, goal, hop) for split in splits if capacity_of(sizes, devices, split) >= enough
    )
    got = plan.latency_seconds if goal == "latency" else plan.period_seconds
    assert got is not None and quickest - 1e-9 <= got <= quickest / WORTH_IT + 1e-9
    assert len(plan.stages) == 1 or got == pytest.approx(quickest)


def seconds_of(sizes: Sizes, devices: list[PlannedDevice], split, goal: str, hop: float) -> float:
    first, times = 0, []
    for number, count in split:
        times.append(sizes.seconds(devices[number], first, first + count) or 0.0)
        first += count
    hops = [hop] * (len(split) - 1)
    return sum(times) + sum(hops) if goal == "latency" else max((*times, *hops))


def test_one_device_that_holds_everything_is_not_helped():
    plan = plan_split(SHAPE, [device("big", 200), device("small", 60)], {}, DEMAND)
    assert [stage.device for stage in plan.stages] == ["big"]
    assert "one device" in plan.reason


def test_the_fuller_cache_wins_over_one_tight_device():
    """vLLM #6920: what counts is the poorest stage's room."""
    plan = plan_split(SHAPE, [device("big", 100), device("small", 60)], {}, Demand(1024, 16, step_tokens=16))
    assert len(plan.stages) == 2 and plan.capacity_tokens > 4096
    assert "one device would keep" in plan.reason


def test_layers_follow_memory_by_the_largest_remainder():
    shape = replace(SHAPE, embedding_bytes=0, head_bytes=0, layers=(LayerSize(10 * MB, 0),) * 10)
    devices = [device("a", 72), device("b", 36)]
    plan = plan_split(shape, devices, {}, Demand(16, 1, step_tokens=1), SplitWish("vram"))
    assert sorted(plan.counts) == [3, 7]


def test_a_share_that_does_not_fit_moves_to_a_neighbour():
    """By memory alone the last stage would get its share of layers and a large head (SGLang #9798)."""
    shape = replace(SHAPE, head_bytes=40 * MB)
    devices = [device("a", 75), device("b", 75)]
    plan = plan_split(shape, devices, {}, replace(DEMAND, sequences=1), SplitWish("vram"))
    check(plan, shape, devices, replace(DEMAND, sequences=1))


def test_tied_weights_are_counted_on_both_ends_and_once_on_one_device():
    tied = replace(SHAPE, tied=True, embedding_bytes=8 * MB, head_bytes=8 * MB)
    assert tied.weights_bytes == 88 * MB
    assert tied.ends_bytes(True, False) + tied.ends_bytes(False, True) == 16 * MB


def test_a_quick_device_gets_more_layers_than_its_memory_says():
    devices = [device("quick", 135, 1.0), device("slow", 135, 3.0)]
    shape = replace(SHAPE, layers=(LayerSize(20 * MB, 1000),) * 8)
    by_memory = plan_split(shape, devices, {}, DEMAND, SplitWish("vram"))
    by_pace = plan_split(shape, devices, {}, DEMAND, SplitWish("profiled", "throughput"))
    assert by_memory.counts == (4, 4)
    assert {stage.device: stage.layers for stage in by_pace.stages}["quick"] == 5
    assert by_pace.period_seconds < by_memory.period_seconds


def test_tight_budgets_leave_a_profiled_split_a_choice():
    """All that is wanted does not fit; the slow device still gets less than the cache alone would give it."""
    demand = Demand(1024, 64, step_tokens=16)
    devices = [device("quick", 80, 1.0), device("slow", 60, 3.0)]
    wide = plan_split(SHAPE, devices, {}, demand)
    quick = plan_split(SHAPE, devices, {}, demand, SplitWish("profiled"))
    layers = {plan.strategy: {stage.device: stage.layers for stage in plan.stages} for plan in (wide, quick)}
    assert layers["profiled"]["slow"] < layers["balanced"]["slow"]
    assert wide.capacity_tokens > quick.capacity_tokens >= wide.capacity_tokens * PROFILED_SHARE - 16


def test_a_slow_link_keeps_everything_on_one_device():
    devices = [device("a", 200, 1.0), device("b", 200, 1.0)]
    quick, slow = {("a", "b"): LinkPace(0.01)}, {("a", "b"): LinkPace(100.0)}
    assert len(plan_split(SHAPE, devices, quick, DEMAND, SplitWish("profiled", "throughput")).stages) == 2
    assert len(plan_split(SHAPE, devices, slow, DEMAND, SplitWish("profiled", "throughput")).stages) == 1
    assert len(plan_split(SHAPE, devices, quick, DEMAND, SplitWish("profiled", "latency")).stages) == 1


def test_what_does_not_fit_says_how_much_is_missing_and_what_would_help():
    demand = Demand(100_000, 1, step_tokens=16)
    with pytest.raises(DoesNotFit, match="short by") as refusal:
        plan_split(SHAPE, [device("a", 50), device("b", 50)], {}, demand)
    context = next(one for one in refusal.value.remedies if "context" in one)
    longest = int(context.split("of ")[1].split(" ")[0].replace(",", ""))
    assert plan_split(SHAPE, [device("a", 50), device("b", 50)], {}, replace(demand, context_tokens=longest))
    with pytest.raises(DoesNotFit):
        plan_split(SHAPE, [device("a", 50), device("b", 50)], {}, replace(demand, context_tokens=longest + 16))


def test_the_device_that_would_make_it_fit_does():
    demand, devices = Demand(1024, 1, step_tokens=16), [device("a", 60)]
    with pytest.raises(DoesNotFit) as refusal:
        plan_split(SHAPE, devices, {}, demand)
    larger = device("a", 60 + refusal.value.short_bytes / MB + 0.001)
    assert plan_split(SHAPE, [larger], {}, demand).counts == (8,)
    assert any("int4" in one or "int8" in one for one in refusal.value.remedies)


def test_a_split_by_hand_is_taken_as_it_is_or_refused():
    devices = [device("a", 100), device("b", 100), device("c", 100)]
    plan = plan_split(SHAPE, devices, {}, DEMAND, SplitWish(counts=(3, 0, 5)))
    assert [(stage.device, stage.first, stage.behind) for stage in plan.stages] == [("a", 0, 3), ("c", 3, 8)]
    for wrong in ((3, 3), (9, -1), (2, 2, 2, 2)):
        with pytest.raises(UsageError, match="layers to at most 3 devices"):
            plan_split(SHAPE, devices, {}, DEMAND, SplitWish(counts=wrong))
    with pytest.raises(DoesNotFit):
        plan_split(SHAPE, [device("a", 20), device("b", 100)], {}, DEMAND, SplitWish(counts=(6, 2)))


def test_profiled_wants_measured_paces():
    with pytest.raises(UsageError, match="measured"):
        plan_split(SHAPE, [device("a", 50), device("b", 100)], {}, DEMAND, SplitWish("profiled"))


def test_no_device_and_no_layers_are_refused():
    with pytest.raises(UsageError):
        plan_split(SHAPE, [], {}, DEMAND)
    with pytest.raises(ValueError, match="layers"):
        replace(SHAPE, layers=())


def test_few_devices_stand_in_every_order_and_many_in_likely_ones():
    few = [device(str(n), 10 + n) for n in range(3)]
    many = [device(str(n), 10 + n % 5) for n in range(9)]
    assert len(set(orders(few))) == 6
    assert 1 <= len(set(orders(many))) <= 3 and all(sorted(one) == list(range(9)) for one in orders(many))


def test_a_gpu_keeps_room_for_graphs():
    cpu, gpu = PlannedDevice("a", 8 << 30), PlannedDevice("a", 8 << 30, "cuda")
    assert cpu.usable_bytes - gpu.usable_bytes == 1 << 30
    assert PlannedDevice("a", 100, "cuda").usable_bytes == 0


def test_the_planner_is_a_value_of_its_arguments():
    sizes = Sizes(SHAPE, DEMAND)
    planner = Planner(sizes, (device("a", 60), device("b", 60)), {})
    assert list(planner.candidates(SplitWish())) == list(planner.candidates(SplitWish()))


def test_a_stated_budget_has_no_reserve_taken_of_it() -> None:
    free, stated = PlannedDevice("a", 10 * MB), PlannedDevice("a", 10 * MB, stated=True)
    assert (free.usable_bytes, stated.usable_bytes) == (9 * MB, 10 * MB)


def test_what_is_needed_counts_the_second_copy_of_tied_weights_and_the_steps() -> None:
    tied = replace(SHAPE, tied=True, head_bytes=20 * MB, embedding_bytes=20 * MB)
    with pytest.raises(DoesNotFit) as caught:
        plan_split(tied, [device("a", 61), device("b", 61)], {}, DEMAND)
    sizes = Sizes(tied, DEMAND)
    steps = sizes.activations(4) + sizes.activations(8)
    cache = 1024 * 8 * 1000
    need = (120 * MB + cache + steps) / 1e9
    assert f"it needs {need:.2f} GB over 2 devices (0.12 GB for weights" in str(caught.value)


def test_a_split_by_hand_that_does_not_fit_is_told_of_one_that_does() -> None:
    devices = [device("a", 90), device("b", 30)]
    with pytest.raises(DoesNotFit) as caught:
        plan_split(SHAPE, devices, {}, DEMAND, SplitWish(counts=(2, 6)))
    assert caught.value.remedies == ("Another split would fit",)
    check(plan_split(SHAPE, devices, {}, DEMAND), SHAPE, devices, DEMAND)


def test_smaller_weights_are_a_remedy_only_where_they_are_smaller() -> None:
    for bits, offered in ((16, True), (32, True), (5, False)):
        with pytest.raises(DoesNotFit) as caught:
            plan_split(replace(SHAPE, weight_bits=bits), [device("a", 75)], {}, DEMAND)
        assert any("would fit" in one and "Weights as int" in one for one in caught.value.remedies) is offered
