"""What becomes of a plan when devices change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.pipeline.replan import Build, Keep, Refuse, Situation, Stop, decide, gain, kept_layers
from gpu_node.plan_picture import Picture
from gpu_node.split_plan import Demand, DoesNotFit, LayerSize, ModelShape, Plan, Sizes, StagePlan

SHAPE = ModelShape("it", (LayerSize(10, 1),) * 4, 5, 5, 8, 100)
TOO_SMALL = DoesNotFit("it does not fit: short by 2 GB", 2 << 30)


def plan(*counts: int, capacity: int = 100, latency: float | None = None, period: float | None = None) -> Plan:
    stages, first = [], 0
    for number, count in enumerate(counts):
        if count:
            stages.append(StagePlan(f"cpu:{number}", first, first + count, 10 * count, capacity))
        first += count
    return Plan(tuple(stages), capacity, "profiled", latency, period, reason="the reason")


def picture(found: Plan) -> Picture:
    return Picture(found, Sizes(SHAPE, Demand(16)), ())


def situation(current: Plan | None, found: Plan | DoesNotFit, present: int, leaving: tuple[int, ...] = ()) -> Situation:
    """So many devices present of 100 bytes, but for those leaving."""
    names = {f"cpu:{number}": 100 for number in range(present) if number not in leaving}
    budgets = {} if current is None else {stage.device: 100 for stage in current.stages}
    known = found if isinstance(found, DoesNotFit) else picture(found)
    return Situation(current, budgets, names, frozenset(f"cpu:{number}" for number in leaving), known)


def test_what_runs_goes_on_where_nothing_is_better() -> None:
    assert decide(situation(plan(2, 2), plan(2, 2), 2)) == Keep()
    assert decide(situation(plan(2, 2), plan(1, 2, 1), 3)) == Keep()
    assert decide(situation(plan(4), TOO_SMALL, 3)) == Keep()


def test_a_better_plan_is_built() -> None:
    more = plan(1, 2, 1, capacity=200)
    assert decide(situation(plan(2, 2), more, 3)) == Build(picture(more), "room for 200 tokens instead of 100")


def test_what_is_gone_is_planned_around_at_once() -> None:
    assert decide(situation(plan(2, 1, 1), plan(2, 2), 2)) == Build(picture(plan(2, 2)), "cpu:2 is gone")
    assert decide(situation(plan(2, 1, 1), TOO_SMALL, 2)) == Stop(TOO_SMALL)


def test_where_nothing_runs_any_plan_is_taken() -> None:
    assert decide(situation(None, plan(4), 1)) == Build(picture(plan(4)), "the reason")
    assert decide(situation(None, TOO_SMALL, 1)) == Stop(TOO_SMALL)


def test_who_leaves_is_planned_around_or_stays() -> None:
    assert decide(situation(plan(2, 1, 1), plan(2, 2), 3, leaving=(2,))) == Build(
        picture(plan(2, 2)), "asked for: cpu:2"
    )
    assert decide(situation(plan(2, 2), TOO_SMALL, 2, leaving=(1,))) == Refuse(("cpu:1",), str(TOO_SMALL))
    assert decide(situation(plan(2, 2), plan(2, 2), 3, leaving=(2,))) == Keep(), "it holds nothing"


def test_who_is_made_smaller_is_planned_anew() -> None:
    smaller = replace(situation(plan(2, 2), plan(2, 2), 2), present={"cpu:0": 100, "cpu:1": 60})
    assert decide(smaller) == Build(picture(plan(2, 2)), "asked for: cpu:1")
    assert decide(replace(smaller, found=TOO_SMALL)) == Refuse(("cpu:1",), str(TOO_SMALL))
    larger = replace(smaller, present={"cpu:0": 100, "cpu:1": 600})
    assert decide(larger) == Keep()


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (plan(4, latency=2.0, period=2.0), plan(2, 2, latency=1.0, period=1.0), "1000.0 ms a step, not 2000.0"),
        (plan(4, latency=2.0, period=2.0), plan(2, 2, latency=1.95, period=1.95), ""),
        (plan(4, latency=2.0, period=2.0), plan(2, 2, latency=2.5, period=1.0), "1000.0 ms from step to step"),
        (plan(4, latency=2.0), plan(2, 2), ""),
        (plan(4, latency=2.0), plan(2, 2, latency=1.0, capacity=50), ""),
        (plan(4, latency=2.0, capacity=50), plan(2, 2, latency=9.0), "room for 100 tokens"),
    ],
)
def test_better_is_more_room_or_less_time(before: Plan, after: Plan, why: str) -> None:
    found = gain(before, after)
    assert why in found and bool(why) == bool(found)


def test_a_plan_by_room_takes_no_worse_time_for_a_better_one() -> None:
    before, after = plan(4, latency=2.0, period=2.0), plan(2, 2, latency=2.5, period=1.0)
    assert not gain(before, replace(after, strategy="vram"))
    assert gain(before, replace(after, strategy="vram", latency_seconds=2.0))


def test_layers_that_stay() -> None:
    assert kept_layers({"cpu:0": (0, 2), "cpu:1": (2, 4)}, plan(1, 3)) == 3
    assert kept_layers({"cpu:1": (0, 2)}, plan(2, 2)) == 0
