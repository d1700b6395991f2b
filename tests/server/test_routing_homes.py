"""Conversations come home, and newcomers keep away from what others may come back to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from server.affinity import Match, Memories
from server.breaker import Breaker, BreakerState
from server.nodes import ModelKey, NodeId
from server.roster import LOOKED_AT, UNKNOWN_PROMPT_SPEED
from server.routing import Choice, Demand, Policy, Refusal, choose, find_home
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
    sized,
)
from tests.server.scripted_nodes import node_of, report_of, roster_of


def test_a_conversation_comes_home() -> None:
    """Conversations come home, whoever is next by the rotation."""
    roster = roster_of(node_of("a"), node_of("b"), node_of("c"))
    for _ in range(5):
        choice = choose(replace(DEMAND, home=home_at("b")), roster, POLICY, NOW)
        assert isinstance(choice, Choice)
        assert (choice.seat.id, choice.at_home) == ("b", True)


def test_a_homecoming_waits_for_its_node_at_most_as_long_as_it_saves() -> None:
    """A homecoming waits for its node at most as long as coming home saves, then takes any free node."""
    roster = roster_of(node_of("a"), node_of("b"))
    occupy(roster, "b")
    demand = replace(DEMAND, home=home_at("b", waits=5.0))
    assert refused(roster, demand) == Refusal("home", retry_at=NOW + 5)
    assert refused(roster, demand, now=NOW + 4.9).reason == "home"
    choice = choose(demand, roster, POLICY, NOW + 5)
    assert isinstance(choice, Choice)
    assert (choice.seat.id, choice.at_home) == ("a", False)


def test_a_home_that_gets_free_in_time_is_taken() -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    occupy(roster, "b")
    demand = replace(DEMAND, home=home_at("b"))
    assert refused(roster, demand).reason == "home"
    occupy(roster, "b", -1)
    assert chosen(roster, demand, now=NOW + 1) == "b"


def test_a_home_that_rests_for_a_moment_is_looked_at_again_in_time() -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    change(roster, "b", busy_until=NOW + 1)
    demand = replace(DEMAND, home=home_at("b", waits=5.0))
    assert refused(roster, demand) == Refusal("home", retry_at=NOW + 1)
    assert chosen(roster, demand, now=NOW + 1) == "b"


@pytest.mark.parametrize(
    "changes",
    [
        {"breaker": Breaker(BreakerState.OPEN, 3, 1, NOW + 30)},
        {"busy_until": NOW + 30},
        {"shunned_until": NOW + 5},
    ],
)
def test_nobody_waits_for_a_home_that_rests_for_longer_than_it_saves(changes: dict[str, Any]) -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    change(roster, "b", **changes)
    assert chosen(roster, replace(DEMAND, home=home_at("b", waits=5.0))) == "a"


@pytest.mark.parametrize("changes", [{"excluded": frozenset({NodeId("b")})}, {"able": lambda seat: seat.id != "b"}])
def test_nobody_waits_for_a_home_that_may_not_serve(changes: dict[str, Any]) -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    demand = replace(DEMAND, home=home_at("b"), **changes)
    assert chosen(roster, demand) == "a"
    occupy(roster, "b")
    assert chosen(roster, demand) == "a"


def test_nobody_waits_for_a_home_that_left_or_has_too_small_a_context() -> None:
    roster = roster_of(sized("a", 16384), sized("b", 4096))
    occupy(roster, "b")
    assert chosen(roster, replace(DEMAND, home=home_at("b"), context_tokens=8192)) == "a"
    roster.remove(NodeId("b"))
    assert chosen(roster, replace(DEMAND, home=home_at("b"))) == "a"


def test_homecomings_are_charged_so_that_over_a_full_rotation_the_weights_hold() -> None:
    roster = roster_of(node_of("a", weight=1.0), node_of("b", weight=1.0), node_of("c", weight=2.0))
    served = Counter(chosen(roster, replace(DEMAND, home=home_at("a"))) for _ in range(3))
    served.update(chosen(roster) for _ in range(9))
    assert served == {"a": 3, "b": 3, "c": 6}


def test_home_is_where_the_longest_part_is_held() -> None:
    memories = Memories()
    roster = roster_of(node_of("a"), node_of("b"), memories=memories)
    memory_with(roster, "a", key=1, tokens=100)
    memory_with(roster, "b", key=2, tokens=300)
    home = find_home([(2, 290), (1, 90)], roster, memories, NOW)
    assert home is not None
    saving = 300 / UNKNOWN_PROMPT_SPEED
    assert (home.node_id, home.saving_seconds, home.waits_until) == ("b", saving, NOW + saving)
    assert find_home([(1, 90)], roster, memories, NOW).node_id == "a"  # type: ignore[union-attr]
    assert find_home([(3, 90)], roster, memories, NOW) is None
    assert find_home([], roster, memories, NOW) is None


def test_what_coming_home_saves_is_judged_by_the_nodes_own_reading_speed() -> None:
    """At most as long as coming home saves (cold minus warm reading there)."""
    memories = Memories()
    roster = roster_of(node_of("a"), memories=memories)
    memory_with(roster, "a", key=1, tokens=300)
    change(roster, "a", prompt_tokens_per_second=10.0)
    assert find_home([(1, 1)], roster, memories, NOW).waits_until == NOW + 30  # type: ignore[union-attr]


def test_nobody_waits_where_it_is_not_certain_that_it_is_still_held() -> None:
    memories = Memories()
    roster = roster_of(node_of("a"), memories=memories)
    memory_with(roster, "a", key=1)
    memory_with(roster, "a", key=2)
    home = find_home([(1, 300)], roster, memories, NOW)
    assert home is not None
    assert home.waits_until == NOW


def test_nobody_waits_for_a_home_that_is_being_overwritten() -> None:
    """Who speaks there now pushes out what the node cannot hold beside it: waiting would save nothing."""
    memories = Memories()
    roster = roster_of(node_of("a", max_concurrency=4), memories=memories)
    memory_with(roster, "a", key=1, tokens=300)
    occupy(roster, "a", 4)
    assert find_home([(1, 300)], roster, memories, NOW).waits_until == NOW  # type: ignore[union-attr]
    roster.seats[NodeId("a")].memory.learn(Match(10, 3, False), warm=True)
    assert find_home([(1, 300)], roster, memories, NOW).waits_until == NOW  # type: ignore[union-attr]
    occupy(roster, "a", -1)
    assert find_home([(1, 300)], roster, memories, NOW).waits_until > NOW  # type: ignore[union-attr]


def test_a_free_holder_goes_before_a_busy_one() -> None:
    memories = Memories()
    roster = roster_of(node_of("a"), node_of("b"), node_of("c"), memories=memories)
    for name in "abc":
        memory_with(roster, name, key=1)
    for busy, expected in (("ab", "c"), ("ac", "b"), ("bc", "a")):
        for name in "abc":
            change(roster, name, in_flight=int(name in busy))
        assert find_home([(1, 300)], roster, memories, NOW).node_id == expected  # type: ignore[union-attr]


def test_another_copy_of_the_model_is_no_home() -> None:
    memories = Memories()
    roster = roster_of(node_of("a"), memories=memories)
    memory_with(roster, "a", key=1, digest="d2")
    assert find_home([(1, 300)], roster, memories, NOW) is None


def test_models_without_digests_are_told_apart_by_name() -> None:
    memories = Memories()
    node = node_of("a", report_of(["one", "two"], digest=""), kind="openai")
    one, two = (roster_of(node, model=ModelKey(name), memories=memories) for name in ("one", "two"))
    memory_with(one, "a", key=1)
    assert find_home([(1, 300)], one, memories, NOW) is not None
    assert find_home([(1, 300)], two, memories, NOW) is None


# --- newcomers


def test_a_newcomer_avoids_seats_with_something_to_lose() -> None:
    """A newcomer goes by the strategy among free nodes that lose nothing by it (hold nothing, or hold several)."""
    roster = roster_of(*(node_of(name) for name in "abcd"))
    memory_with(roster, "a", key=1, at=NOW)
    memory_with(roster, "b", key=2, at=NOW)
    memory_with(roster, "c", key=3, at=NOW)
    roster.seats[NodeId("c")].memory.learn(Match(10, 3, False), warm=True)  # it holds several
    assert Counter(chosen(roster, policy=policy_of(share=0.5)) for _ in range(10)) == {"c": 5, "d": 5}


def test_where_all_lose_something_the_smallest_loss_goes_first() -> None:
    """If there are none, to the one whose loss is smallest (oldest, shortest)."""
    roster = roster_of(*(node_of(name) for name in "abc"))
    memory_with(roster, "a", key=1, tokens=3000, at=NOW)
    memory_with(roster, "b", key=2, tokens=3000, at=NOW - 500)
    memory_with(roster, "c", key=3, tokens=3000, at=NOW - 50)
    assert chosen(roster, policy=policy_of(share=0.5)) == "b"
    memory_with(roster, "b", key=4, tokens=3000, at=NOW)
    memory_with(roster, "c", key=5, tokens=30, at=NOW)
    assert chosen(roster, policy=policy_of(share=0.5)) == "c"


@pytest.mark.parametrize(
    ("demand", "policy"),
    [
        (DEMAND, policy_of(share=0.0)),  # nobody ever comes back
        (DEMAND, policy_of(share=0.9, affinity=False)),
        (replace(DEMAND, needs_memory=False), policy_of(share=0.9)),  # embeddings push nothing out
    ],
)
def test_where_nothing_can_be_lost_the_weights_are_exact(demand: Demand, policy: Policy) -> None:
    """Single-turn load keeps the weights."""
    roster = roster_of(*(node_of(name, weight=weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 5.0))))
    memory_with(roster, "c", key=1, tokens=5000, at=NOW)
    assert Counter(chosen(roster, demand, policy) for _ in range(80)) == {"a": 10, "b": 20, "c": 50}


def test_in_a_large_fleet_a_few_seats_are_weighed_but_all_get_their_turn() -> None:
    roster = roster_of(*(node_of(f"n{number}") for number in range(LOOKED_AT * 5 + 7)))
    count = len(roster.seats)
    served = Counter(chosen(roster, policy=policy_of(share=0.5)) for _ in range(count * 4))
    assert len(served) == count
    assert max(served.values()) <= 8


def test_in_a_large_fleet_the_only_one_that_may_serve_is_found() -> None:
    roster = roster_of(*(node_of(f"n{number}") for number in range(1000)))
    demand = replace(DEMAND, able=lambda seat: seat.id == "n777")
    assert {chosen(roster, demand, policy_of(share=0.5)) for _ in range(5)} == {"n777"}


def test_a_fast_free_node_is_cheaper_than_a_slow_home_that_holds_little() -> None:
    """Cost of a node = wait for a slot + unread tokens / prompt speed."""
    roster = roster_of(node_of("slow"), node_of("gpu"))
    change(roster, "slow", prompt_tokens_per_second=10.0)
    change(roster, "gpu", prompt_tokens_per_second=1000.0)
    little = replace(DEMAND, prompt_tokens=2050, home=home_at("slow", 5.0, tokens=50))
    assert [chosen(roster, little) for _ in range(3)] == ["gpu"] * 3
    most = replace(DEMAND, prompt_tokens=2050, home=home_at("slow", 200.0, tokens=2000))
    assert chosen(roster, most) == "slow"
    occupy(roster, "slow", 1)
    assert chosen(roster, most) == "gpu"  # waiting for it would take longer than reading everything anew elsewhere
