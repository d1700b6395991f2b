"""Who may get the next request, and who gets it by the strategy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from server.affinity import Memories
from server.breaker import Breaker, BreakerState, on_sent
from server.contexts import context_length, fits_context
from server.nodes import ModelCopy, NodeId, NodeStatus
from server.roster import LOOKED_AT, learned_weight
from server.routing import Choice, Demand, Policy, Refusal, choose, same_copy
from tests.server.roster_parts import (
    DEMAND,
    NOW,
    POLICY,
    change,
    chosen,
    home_at,
    occupy,
    policy_of,
    refused,
    sized,
)
from tests.server.scripted_nodes import MODEL, node_of, report_of, roster_of, seat_of


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.READY])
def test_only_ready_nodes_serve(status: NodeStatus) -> None:
    roster = roster_of(node_of("a", status=status))
    assert refused(roster) == Refusal("none_in_service")


def test_only_nodes_that_have_the_model_serve() -> None:
    """A request's `model` goes to nodes that have it."""
    roster = roster_of(node_of("a", report_of(["other"])), node_of("b"))
    assert {chosen(roster) for _ in range(4)} == {"b"}


def test_auto_goes_to_every_nodes_own_model() -> None:
    """`auto` or none means the phone's own model; a node without any is no candidate."""
    roster = roster_of(
        node_of("a", report_of(["one", "two"], resident=["two"])),
        node_of("b", report_of(["three"])),
        node_of("c", report_of([])),
        model=None,
    )
    models = {seat.id: seat.model for seat in roster.seats.values()}
    assert models == {"a": "two", "b": "three"}
    assert {chosen(roster, Demand(None)) for _ in range(4)} == {"a", "b"}


def test_a_full_node_is_passed_over_and_waited_for() -> None:
    roster = roster_of(node_of("a", max_concurrency=2), node_of("b"))
    occupy(roster, "b")
    assert {chosen(roster) for _ in range(3)} == {"a"}
    occupy(roster, "a", 2)
    assert refused(roster) == Refusal("busy")
    occupy(roster, "a", -1)
    assert chosen(roster) == "a"


def test_excluded_nodes_are_passed_over() -> None:
    """Each eligible node is tried at most once per outage."""
    roster = roster_of(node_of("a"), node_of("b"))
    demand = replace(DEMAND, excluded=frozenset({NodeId("a")}))
    assert {chosen(roster, demand) for _ in range(4)} == {"b"}
    assert refused(roster, replace(DEMAND, excluded=frozenset(roster.seats))).reason == "none_in_service"


def test_an_open_breaker_refuses_until_its_rest_is_over() -> None:
    roster = roster_of(node_of("a"))
    change(roster, "a", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert refused(roster) == Refusal("none_in_service", retry_at=NOW + 30)
    assert chosen(roster, now=NOW + 30) == "a"


def test_after_the_rest_exactly_one_request_tries() -> None:
    """Then exactly one request tries: the next one waits for its outcome, though the node has slots."""
    roster = roster_of(node_of("a", max_concurrency=4))
    seat = change(roster, "a", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW))
    assert chosen(roster) == "a"
    change(roster, "a", breaker=on_sent(seat.load.breaker, NOW), in_flight=1)
    assert refused(roster) == Refusal("busy")
    change(roster, "a", breaker=Breaker())
    assert chosen(roster) == "a"


@pytest.mark.parametrize("word", ["shunned_until", "busy_until"])
def test_shunned_and_busy_nodes_come_back_at_their_time(word: str) -> None:
    """A failed attempt counts as load for a while; 429 and 503 mean busy. Both are waited for, not given up."""
    roster = roster_of(node_of("a"), node_of("b"))
    change(roster, "a", **{word: NOW + 1})
    assert {chosen(roster) for _ in range(3)} == {"b"}
    occupy(roster, "b")
    assert refused(roster) == Refusal("busy", retry_at=NOW + 1)
    assert refused(roster, now=NOW + 0.99).reason == "busy"
    assert chosen(roster, now=NOW + 1) == "a"


def test_the_earliest_return_is_named() -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    change(roster, "a", busy_until=NOW + 7)
    change(roster, "b", shunned_until=NOW + 3, busy_until=NOW + 5)
    assert refused(roster).retry_at == NOW + 5


def test_who_may_go_on_is_asked() -> None:
    """Only a node whose copy of the model has the same digest may go on."""
    other = node_of("b", report_of(digest="d2"))
    roster = roster_of(node_of("a"), other)
    copy = roster.seats[NodeId("a")].copy
    demand = replace(DEMAND, able=lambda seat: same_copy(seat, copy, "ollama"))
    assert {chosen(roster, demand) for _ in range(4)} == {"a"}
    occupy(roster, "a")
    assert refused(roster, demand).reason == "busy"


def test_the_same_copy_is_told_by_digest_else_by_kind_and_name() -> None:
    seat = seat_of(node_of("a"))
    assert same_copy(seat, ModelCopy("another name", seat.copy.digest), "openai")
    assert not same_copy(seat, ModelCopy(seat.copy.name, "d2"), "ollama")
    plain = seat_of(node_of("a", report_of(digest=""), kind="openai"))
    assert same_copy(plain, ModelCopy(MODEL), "openai")
    assert not same_copy(plain, ModelCopy(MODEL), "ollama")
    assert not same_copy(plain, ModelCopy("x"), "openai")


# --- contexts


def test_a_request_that_needs_more_context_goes_to_a_node_that_has_it() -> None:
    """A request that needs more than a node has goes to one that has it, or is refused with the limit named."""
    roster = roster_of(sized("a", 4096), sized("b", 16384))
    assert {chosen(roster, replace(DEMAND, context_tokens=8192)) for _ in range(4)} == {"b"}
    occupy(roster, "b")
    assert refused(roster, replace(DEMAND, context_tokens=8192)).reason == "busy"
    assert refused(roster, replace(DEMAND, context_tokens=32768)) == Refusal("context", largest_context=16384)
    assert chosen(roster, replace(DEMAND, context_tokens=4096)) == "a"


def test_a_model_that_is_not_loaded_or_does_not_tell_may_have_any_context() -> None:
    for node in (node_of("a"), sized("a", None)):
        assert chosen(roster_of(node), replace(DEMAND, context_tokens=8192)) == "a"


def test_a_context_we_had_loaded_counts_before_a_probe_has_seen_it() -> None:
    """`num_ctx` is fixed per node, since another value reloads the model."""
    for node in (node_of("a"), sized("a", 4096)):
        seat = seat_of(node)
        seat.memory.pinned_contexts[MODEL] = 8192
        assert context_length(seat) == 8192
        assert fits_context(seat, 8192)
        assert not fits_context(seat, 8193)


def test_a_context_too_large_for_the_nodes_that_are_left_is_named() -> None:
    roster = roster_of(sized("a", 4096), sized("b", 16384))
    demand = replace(DEMAND, context_tokens=8192, excluded=frozenset({NodeId("b")}))
    assert refused(roster, demand) == Refusal("context", largest_context=4096)


def test_a_resting_node_with_the_context_is_none_in_service() -> None:
    roster = roster_of(sized("a", 4096), sized("b", 16384))
    change(roster, "b", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert refused(roster, replace(DEMAND, context_tokens=8192)).reason == "none_in_service"


# --- the last resort

LOCAL = node_of("local", last_resort=True, max_concurrency=2)


def test_the_last_resort_serves_alone() -> None:
    roster = roster_of(LOCAL)
    assert chosen(roster) == "local"
    occupy(roster, "local", 2)
    assert refused(roster) == Refusal("busy")


@pytest.mark.parametrize("trouble", ["full", "shunned"])
def test_the_last_resort_does_not_serve_while_another_can_busy_or_not(trouble: str) -> None:
    """Once other nodes serve, it is the last resort only: the others are waited for."""
    roster = roster_of(LOCAL, node_of("a"))
    changes: dict[str, dict[str, Any]] = {
        "full": {"in_flight": 1},
        "shunned": {"shunned_until": NOW + 1},
    }
    assert {chosen(roster) for _ in range(4)} == {"a"}
    change(roster, "a", **changes[trouble])
    assert refused(roster).reason == "busy"


def test_the_last_resort_serves_when_no_other_can() -> None:
    roster = roster_of(LOCAL, node_of("a"))
    assert chosen(roster, replace(DEMAND, excluded=frozenset({NodeId("a")}))) == "local"
    change(roster, "a", breaker=Breaker(BreakerState.OPEN, 3, 1, NOW + 30))
    assert chosen(roster) == "local"
    assert chosen(roster, now=NOW + 30) == "a"
    change(roster, "a", breaker=Breaker(BreakerState.HALF_OPEN, 3, 1), in_flight=1)
    assert chosen(roster) == "local"  # one on trial has yet to show that it can
    roster.remove(NodeId("a"))
    assert chosen(roster, now=NOW + 30) == "local"


def test_the_last_resort_serves_what_is_too_large_for_the_others() -> None:
    local = sized("local", 32768, last_resort=True)
    roster = roster_of(local, sized("a", 4096))
    assert chosen(roster, replace(DEMAND, context_tokens=8192)) == "local"


def test_the_last_resort_is_no_home_while_others_serve() -> None:
    roster = roster_of(LOCAL, node_of("a"))
    demand = replace(DEMAND, home=home_at("local"))
    assert chosen(roster, demand) == "a"
    occupy(roster, "a")
    assert refused(roster, demand).reason == "busy"
    roster.remove(NodeId("a"))
    choice = choose(demand, roster, POLICY, NOW)
    assert isinstance(choice, Choice)
    assert (choice.seat.id, choice.at_home) == ("local", True)


@pytest.mark.parametrize("policy", [POLICY, policy_of(share=0.5)])
def test_the_last_resort_takes_nothing_from_the_weights_of_the_others(policy: Policy) -> None:
    roster = roster_of(LOCAL, node_of("a", weight=3.0), node_of("b", weight=1.0))
    assert Counter(chosen(roster, policy=policy) for _ in range(40)) == {"a": 30, "b": 10}


def test_a_node_may_become_the_last_resort_and_cease_to_be_it() -> None:
    roster = roster_of(node_of("a"), node_of("b"))
    memories = Memories()
    load = roster.seats[NodeId("a")].load
    roster.place(node_of("a", last_resort=True), load, memories.of(NodeId("a")), NOW)
    assert {chosen(roster) for _ in range(4)} == {"b"}
    roster.place(node_of("a"), load, memories.of(NodeId("a")), NOW)
    assert {chosen(roster) for _ in range(4)} == {"a", "b"}
    assert roster.last_resorts == set()


# --- strategies


def test_weighted_round_robin_follows_the_weights() -> None:
    roster = roster_of(*(node_of(name, weight=weight) for name, weight in (("a", 5.0), ("b", 1.0), ("c", 1.0))))
    assert "".join(chosen(roster) for _ in range(7)) == "aabacaa"


def test_least_busy_takes_the_smallest_share_of_slots_in_use() -> None:
    roster = roster_of(node_of("a", max_concurrency=4), node_of("b", max_concurrency=2), node_of("c"))
    policy = policy_of("least_busy")
    for name, requests in (("a", 1), ("b", 1), ("c", 1)):
        occupy(roster, name, requests)
    assert chosen(roster, policy=policy) == "a"
    occupy(roster, "a", 2)
    assert chosen(roster, policy=policy) == "b"
    occupy(roster, "c", -1)
    assert chosen(roster, policy=policy) == "c"


def test_least_busy_finds_an_idle_node_among_many() -> None:
    roster = roster_of(*(node_of(f"n{number}", max_concurrency=2) for number in range(LOOKED_AT * 4)))
    for name in list(roster.seats):
        occupy(roster, name, int(name != "n99"))
    assert {chosen(roster, policy=policy_of("least_busy")) for _ in range(6)} == {"n99"}


def test_least_busy_takes_turns_among_equals() -> None:
    roster = roster_of(*(node_of(name) for name in "abc"))
    assert Counter(chosen(roster, policy=policy_of("least_busy")) for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_fastest_goes_by_learned_speed_and_time_to_first_token() -> None:
    """`fastest` (learned tokens/s and time to first token); nodes not yet measured go first."""
    roster = roster_of(*(node_of(name, max_concurrency=4) for name in "abc"))
    policy = policy_of("fastest")
    change(roster, "a", tokens_per_second=20.0, first_token_seconds=1.0)
    change(roster, "b", tokens_per_second=10.0, first_token_seconds=1.0)
    assert {chosen(roster, policy=policy) for _ in range(3)} == {"c"}
    change(roster, "c", tokens_per_second=22.0, first_token_seconds=60.0)
    assert {chosen(roster, policy=policy) for _ in range(3)} == {"a"}
    occupy(roster, "a", 2)
    assert chosen(roster, policy=policy) == "b", "three at once are a third as fast"


def test_auto_weights_follow_the_learned_speed() -> None:
    """`weight` (number above 0, or `"auto"`)."""
    roster = roster_of(node_of("a", weight=None), node_of("b", weight=None))
    assert Counter(chosen(roster) for _ in range(8)) == {"a": 4, "b": 4}
    roster.seats[NodeId("a")].load.tokens_per_second = 32.0
    roster.seats[NodeId("b")].load.tokens_per_second = 8.0
    for name in list(roster.seats):
        roster.reweigh(name, NOW)
    assert Counter(chosen(roster) for _ in range(50)) == {"a": 40, "b": 10}


def test_the_owners_weight_stays_whatever_is_learned() -> None:
    roster = roster_of(node_of("a", weight=2.0))
    roster.seats[NodeId("a")].load.tokens_per_second = 32.0
    roster.reweigh(NodeId("a"), NOW)
    assert roster.seats[NodeId("a")].weight == 2.0


def test_speeds_that_are_equal_but_for_noise_share_a_weight() -> None:
    def weight(speed: float | None) -> float:
        return learned_weight(change(roster_of(node_of("a", weight=None)), "a", tokens_per_second=speed))

    assert weight(10.3) == weight(10.7)
    assert weight(10.0) < weight(12.0)
    assert weight(None) == weight(10.0)
