"""Warm phones get less, those that rest get nothing, and what happens when all of them rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from server.affinity import Memories
from server.breaker import Breaker, BreakerState
from server.care import UNTROUBLED, Care
from server.care.pace import FORGOTTEN_SECONDS
from server.nodes import Load, Node, NodeId
from server.roster import WEIGHED_SECONDS, Roster
from server.routing import Choice, Refusal, choose, find_home
from tests.server.roster_parts import (
    DEMAND,
    NOW,
    POLICY,
    change,
    chosen,
    home_at,
    memory_with,
    occupy,
    policy_of,
    refused,
)
from tests.server.scripted_nodes import MODEL, node_of, roster_of

HOT = Care(0.0, "hot", hot=True, strain=1.0)
SPENT = Care(0.0, "hot", hot=True, strain=2.0, spent=True)


def cared(name: str, care: Care = UNTROUBLED, **changes: Any) -> Node:
    return replace(node_of(name, **changes), care=care)


def fall_ill(roster: Roster, name: str, care: Care) -> None:
    """The registry's news of a phone that is known already."""
    seat = roster.seats[NodeId(name)]
    roster.place(replace(seat.node, care=care), seat.load, seat.memory, NOW)


def shares(roster: Roster, policy: Any = POLICY, turns: int = 120) -> Counter[str]:
    return Counter(chosen(roster, policy=policy) for _ in range(turns))


# --- warm


@pytest.mark.parametrize("strategy", ["weighted_round_robin", "least_busy"])
def test_a_warm_phone_gets_its_factor_of_the_share(strategy: str) -> None:
    roster = roster_of(cared("a"), cared("b", Care(0.5)), cared("c", Care(0.5), weight=2.0))
    assert shares(roster, policy_of(strategy), 125) == {"a": 50, "b": 25, "c": 50}


def test_the_factor_counts_for_learned_weights_too() -> None:
    roster = roster_of(cared("a", weight=None), cared("b", Care(0.25), weight=None))
    for name in "ab":
        change(roster, name, tokens_per_second=32.0)
        roster.reweigh(NodeId(name), NOW)
    assert shares(roster, turns=100) == {"a": 80, "b": 20}


def test_the_fastest_is_so_no_more_when_it_is_warm() -> None:
    roster = roster_of(cared("a"), cared("b"))
    for name, speed in (("a", 10.0), ("b", 15.0)):
        change(roster, name, tokens_per_second=speed, first_token_seconds=0.1)
    assert chosen(roster, policy=policy_of("fastest")) == "b"
    fall_ill(roster, "b", Care(0.5))
    assert chosen(roster, policy=policy_of("fastest")) == "a"


def test_slots_of_a_warm_phone_count_for_less() -> None:
    roster = roster_of(cared("a", max_concurrency=4), cared("b", Care(0.5), max_concurrency=4))
    occupy(roster, "a", 2)
    occupy(roster, "b", 1)
    counted = shares(roster, policy_of("least_busy"), 30)
    assert set(counted) == {"a", "b"}  # half of its slots against a quarter of twice as tired ones
    fall_ill(roster, "b", Care(0.4))
    assert set(shares(roster, policy_of("least_busy"), 30)) == {"a"}


def test_a_warm_phone_serves_where_all_others_are_busy() -> None:
    """Shares bind where there is a choice: nobody waits beside a phone that is merely warm."""
    roster = roster_of(cared("a"), cared("b", Care(0.2)))
    occupy(roster, "a")
    assert chosen(roster) == "b"


# --- learned speeds


def learn(roster: Roster, name: str, speed: float, now: float) -> None:
    """An answer of 100 tokens has ended."""
    load = roster.seats[NodeId(name)].load
    load.tokens_per_second = load.pace.learn(100, 100 / speed, now)
    roster.reweigh(NodeId(name), now)
    roster.touch(NodeId(name), now)


def test_a_phone_that_throttles_loses_its_share_within_the_window() -> None:
    roster = roster_of(cared("a", weight=None), cared("b", weight=None))
    now = NOW
    for speed in (10.0, 3.0):
        for _ in range(12):
            now += 30.0
            learn(roster, "a", speed, now)
            learn(roster, "b", 10.0, now)
        counted = Counter(chosen(roster, now=now) for _ in range(130))
        assert counted["a"] == pytest.approx(130 * speed / (speed + 10.0), abs=3)


def test_a_new_phone_gets_a_fair_chance_beside_learned_ones() -> None:
    roster = roster_of(cared("a", weight=None), cared("b", weight=None), cared("new", weight=None))
    for name in "ab":
        learn(roster, name, 20.0, NOW)
    assert shares(roster, turns=50) == {"a": 20, "b": 20, "new": 10}


@pytest.mark.parametrize("strategy", ["weighted_round_robin", "fastest"])
def test_idle_time_does_not_freeze_what_was_learned(strategy: str) -> None:
    """A phone that was slow while hot is tried again, also where only the quickest are asked."""
    roster = roster_of(cared("a", weight=None), cared("b", weight=None))
    learn(roster, "a", 10.0, NOW)
    learn(roster, "b", 1.0, NOW)
    policy = policy_of(strategy)
    assert Counter(chosen(roster, policy=policy, now=NOW + 60) for _ in range(11))["b"] <= 1
    later = NOW + FORGOTTEN_SECONDS + WEIGHED_SECONDS
    learn(roster, "a", 10.0, later - 1)
    counted = Counter(chosen(roster, policy=policy, now=later) for _ in range(10))
    assert counted["b"] >= 5
    learn(roster, "b", 40.0, later)
    assert Counter(chosen(roster, policy=policy, now=later) for _ in range(10))["b"] >= 8


def test_an_owners_weight_is_not_forgotten() -> None:
    roster = roster_of(cared("a", weight=3.0), cared("b", weight=1.0))
    for name in "ab":
        learn(roster, name, 1.0, NOW)
    assert Counter(chosen(roster, now=NOW + 1e6) for _ in range(40)) == {"a": 30, "b": 10}


@pytest.mark.parametrize(("speed", "weight"), [(1e-9, 0.01), (1e30, 1e4)])
def test_absurd_speeds_take_neither_all_work_nor_none(speed: float, weight: float) -> None:
    """A node whose clock is wrong."""
    roster = roster_of(cared("a", weight=None))
    learn(roster, "a", speed, NOW)
    assert roster.seats[NodeId("a")].weight == pytest.approx(weight, rel=0.05)


# --- resting


def test_a_phone_that_rests_gets_nothing_and_comes_back() -> None:
    roster = roster_of(cared("a"), cared("b"))
    fall_ill(roster, "b", HOT)
    assert set(shares(roster)) == {"a"}
    fall_ill(roster, "b", UNTROUBLED)
    assert shares(roster) == {"a": 60, "b": 60}


def test_one_waits_for_a_busy_phone_rather_than_asking_one_that_rests() -> None:
    roster = roster_of(cared("a"), cared("b", HOT))
    occupy(roster, "a")
    assert refused(roster) == Refusal("busy")


def test_what_runs_at_a_phone_goes_on_while_it_rests() -> None:
    roster = roster_of(cared("a"), cared("b", max_concurrency=2))
    occupy(roster, "b", 1)
    fall_ill(roster, "b", HOT)
    assert roster.seats[NodeId("b")].load.in_flight == 1
    occupy(roster, "b", -1)
    assert set(shares(roster)) == {"a"}


def test_a_conversation_does_not_come_home_to_a_phone_that_rests() -> None:
    roster = roster_of(cared("a"), cared("b", HOT))
    assert chosen(roster, replace(DEMAND, home=home_at("b"))) == "a"
    occupy(roster, "a")
    assert refused(roster, replace(DEMAND, home=home_at("b"))) == Refusal("busy")  # and does not wait for it


def test_no_home_is_found_at_a_phone_that_rests() -> None:
    memories = Memories()
    roster = roster_of(cared("a"), cared("b", HOT), memories=memories)
    memory_with(roster, "b", 7)
    assert find_home(((7, 300),), roster, memories, NOW) is None
    fall_ill(roster, "b", UNTROUBLED)
    home = find_home(((7, 300),), roster, memories, NOW)
    assert home is not None and home.node_id == "b"


# --- all of them


def test_when_all_rest_the_least_strained_serves() -> None:
    roster = roster_of(cared("a", HOT), cared("b", replace(HOT, strain=0.4)), cared("c", SPENT))
    assert set(shares(roster)) == {"b"}
    occupy(roster, "b")
    assert chosen(roster) == "a"
    occupy(roster, "a")
    assert refused(roster) == Refusal("busy")


def test_of_equally_strained_ones_the_less_busy_serves() -> None:
    roster = roster_of(cared("a", HOT, max_concurrency=2), cared("b", HOT, max_concurrency=2))
    occupy(roster, "a")
    assert chosen(roster) == "b"


def test_what_cannot_bear_any_work_is_never_asked() -> None:
    roster = roster_of(cared("a", SPENT))
    assert refused(roster) == Refusal("none_in_service")
    fresh = node_of("a")
    roster.place(fresh, Load(), Memories().of(fresh.id), NOW)
    assert chosen(roster) == "a"


def test_one_that_rests_serves_where_the_others_cannot() -> None:
    """Excluded, or resting after failures: for this request there is nobody else."""
    roster = roster_of(cared("a"), cared("b", HOT))
    assert chosen(roster, replace(DEMAND, excluded=frozenset({NodeId("a")}))) == "b"
    change(roster, "a", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert chosen(roster) == "b"


def test_breakers_hold_for_phones_that_rest() -> None:
    roster = roster_of(cared("a", HOT))
    change(roster, "a", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert refused(roster) == Refusal("none_in_service", retry_at=NOW + 30)
    assert chosen(roster, now=NOW + 30) == "a"


def test_the_embedded_node_goes_before_phones_that_rest() -> None:
    roster = roster_of(cared("a", HOT), node_of("own", last_resort=True))
    assert chosen(roster) == "own"
    occupy(roster, "own")
    assert refused(roster) == Refusal("busy")  # it is in service: soon it is free again
    change(roster, "own", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert chosen(roster) == "a"


def test_choices_among_those_that_rest_take_nothing_from_the_rotation() -> None:
    roster = roster_of(cared("a", HOT), cared("b", HOT))
    for _ in range(5):
        assert isinstance(choose(DEMAND, roster, POLICY, NOW), Choice)
    for name in "ab":
        fall_ill(roster, name, UNTROUBLED)
    assert shares(roster) == {"a": 60, "b": 60}


def test_every_model_of_a_phone_rests_with_it() -> None:
    node = cared("a", HOT)
    for model in (MODEL, None):
        assert NodeId("a") in roster_of(node, model=model).troubled
