"""Who lends and who gives back, over any numbers and at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.memory.leases import Lease, Terms
from gpu_node.memory.lending_policy import (
    Lender,
    LendingPolicy,
    ScoreWeights,
    choose_lender,
    due_bytes,
    idle_leases,
    lendable_bytes,
    may_move,
    reclaim_order,
    scores,
    to_reclaim,
)

POLICY = LendingPolicy()
SIZES = st.integers(0, 10_000)


@st.composite
def lenders(draw: st.DrawFn) -> Lender:
    total, used = draw(SIZES), draw(SIZES)
    lent = draw(st.integers(0, used))
    pace, idle = draw(st.floats(0, 1e9)), draw(st.floats(0, 1e4))
    return Lender(draw(st.integers(0, 50)), total, used, lent, pace, idle, draw(st.booleans()))


@st.composite
def policies(draw: st.DrawFn) -> LendingPolicy:
    weights = ScoreWeights(*(draw(st.floats(0.1, 100)) for _ in range(3)))
    return LendingPolicy(draw(st.floats(0, 1)), draw(st.floats(0.01, 1)), weights)


@given(lenders(), policies())
def test_what_may_be_lent_keeps_every_bound(lender: Lender, policy: LendingPolicy) -> None:
    room = lendable_bytes(lender, policy)
    assert room >= 0
    if not room:
        return
    assert not lender.short
    after = replace(lender, used_bytes=lender.used_bytes + room, lent_bytes=lender.lent_bytes + room)
    assert after.lent_bytes <= policy.ratio * lender.total_bytes
    assert after.used_bytes <= lender.total_bytes
    assert not due_bytes(after, policy), "what is lent is not asked back at once"


@given(st.lists(lenders(), max_size=6, unique_by=lambda lender: lender.stage), SIZES, policies())
def test_the_chosen_one_has_the_best_score_of_those_with_room(
    candidates: list[Lender], wanted: int, policy: LendingPolicy
) -> None:
    able = [lender for lender in candidates if lendable_bytes(lender, policy) >= wanted]
    chosen = choose_lender(candidates, wanted, policy)
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen in able
        found = scores(able, policy)
        assert found[chosen.stage] == max(found.values())
        assert all(0 <= score <= 1 + 1e-9 for score in found.values())


def lender(stage: int, **changes: float) -> Lender:
    return replace(Lender(stage, 1000, 0, 0, 1e9, 0.0), **changes)  # type: ignore[arg-type]


def test_the_score_weighs_capacity_link_and_idle_time() -> None:
    roomy, quick, idle = lender(0), lender(1, used_bytes=400, link_pace=2e9), lender(2, used_bytes=400, idle_seconds=60)
    found = scores([roomy, quick, idle], POLICY)
    assert found[0] == pytest.approx(0.40 * 1 + 0.30 * 0.5)
    assert found[1] == pytest.approx(0.40 * 400 / 700 + 0.30)
    assert found[2] == pytest.approx(0.40 * 400 / 700 + 0.30 * 0.5 + 0.30)
    assert choose_lender([roomy, quick, idle], 100, POLICY) == idle
    by_capacity = replace(POLICY, weights=ScoreWeights(100, 0, 0))
    assert choose_lender([roomy, quick, idle], 100, by_capacity) == roomy
    by_link = replace(POLICY, weights=ScoreWeights(0, 1, 0))
    assert choose_lender([roomy, quick, idle], 100, by_link) == quick


def test_no_more_than_a_share_of_the_memory_is_lent() -> None:
    assert lendable_bytes(lender(0), POLICY) == 700
    assert lendable_bytes(lender(0, used_bytes=300, lent_bytes=300), POLICY) == 400
    assert lendable_bytes(lender(0, used_bytes=700, lent_bytes=200), POLICY) == 100, "reclaim begins at 800"
    assert lendable_bytes(lender(0, used_bytes=900), POLICY) == 0
    assert lendable_bytes(lender(0, short=True), POLICY) == 0


def test_reclaim_begins_beyond_the_threshold_and_ends_at_what_was_lent() -> None:
    assert due_bytes(lender(0, used_bytes=800, lent_bytes=300), POLICY) == 0
    assert due_bytes(lender(0, used_bytes=801, lent_bytes=300), POLICY) == 1
    assert due_bytes(lender(0, used_bytes=1500, lent_bytes=300), POLICY) == 300
    assert due_bytes(lender(0, used_bytes=750, lent_bytes=720), POLICY) == 20


def lease(number: int, priority: int = 0, at: float = 0.0, blocks: int = 10, state: str = "lent") -> Lease:
    return Lease(number, Terms(0, 1, number * 100, number * 100 + blocks, 10, priority), at, at, state)  # type: ignore[arg-type]


def test_low_priority_goes_first_and_then_the_youngest() -> None:
    old, young, dear = lease(1, at=1), lease(2, at=2), lease(3, priority=5, at=9)
    assert reclaim_order([dear, old, young]) == [young, old, dear]
    assert to_reclaim([dear, old, young], 150) == [young, old]
    assert to_reclaim([dear, old, young], 1000, below=5) == [young, old]
    assert to_reclaim([dear, old, young], 0) == []
    assert to_reclaim([lease(4, state="host"), lease(5, state="asked"), old], 1000) == [old]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=8), st.integers(0, 2000))
def test_no_more_is_reclaimed_than_is_needed(given_leases: list[tuple[int, int]], wanted: int) -> None:
    all_of_them = [lease(at, priority, at, blocks) for at, (priority, blocks) in enumerate(given_leases)]
    chosen = to_reclaim(all_of_them, wanted)
    freed = sum(each.terms.size_bytes for each in chosen)
    assert freed >= min(wanted, sum(each.terms.size_bytes for each in all_of_them))
    assert freed - (chosen[-1].terms.size_bytes if chosen else 0) < max(wanted, 1)
    kept = [each.terms.priority for each in all_of_them if each not in chosen]
    assert all(each.terms.priority <= min(kept, default=99) for each in chosen)


def test_a_move_is_bounded_in_time_and_in_memory() -> None:
    policy = replace(POLICY, host_bytes=250, move_seconds=2.0)
    assert may_move(lease(1), 150, 100.0, 100, policy)
    assert not may_move(lease(1), 151, 100.0, 100, policy)
    assert not may_move(lease(1), 150, 100.0, 101, policy)
    assert not may_move(lease(1), 0, 0.0, 0, policy)


def test_what_nobody_needs_is_given_back() -> None:
    policy = replace(POLICY, idle_seconds=10)
    unused, used, asked = lease(1, at=0), lease(2, at=5), lease(3, at=0, state="asked")
    assert idle_leases([unused, used, asked], 10.0, policy) == [unused]


@pytest.mark.parametrize("wrong", [{"ratio": 1.1}, {"ratio": -0.1}, {"threshold": -1}, {"chunk_blocks": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lent|lending"):
        LendingPolicy(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights"):
        ScoreWeights(0, 0, 0)
