"""When a model is due to be loaded before anybody asks: each rule, over looks at a node that is made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.breaker import Breaker, BreakerState
from server.care import Care
from server.nodes import Load, ModelKey, Node, NodeStatus
from server.warmth import Warmth, WarmthRules, due, failed, is_in_the_way, loaded, looked, refused, wishes_of
from tests.server.scripted_nodes import node_of, report_of

A, B, C = ModelKey("a:1b"), ModelKey("b:1b"), ModelKey("c:1b")
RULES = WarmthRules()


def phone(*resident: str, models: tuple[str, ...] = (A, B, C), **changes: Any) -> Node:
    return node_of("kitchen", report_of(models, resident=resident), **{"warm_up": (A,), **changes})


class Looks:
    """A node as it is seen at one moment after the other."""

    def __init__(self, rules: WarmthRules = RULES) -> None:
        self.rules, self.warmth, self.load, self.now = rules, Warmth(), Load(), 1000.0

    def at(self, node: Node, after: float = 2.0) -> ModelKey | None:
        self.now += after
        self.warmth = looked(self.warmth, node, self.load, self.rules, self.now)
        return due(self.warmth, self.load, self.rules, self.now)


# -- what a node should hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "models", "wanted"),
    [
        ({}, (A,), ()),  # somebody's server: nobody said anything
        ({"details": {"chip": "SM8550"}}, (A,), (A,)),  # it joined, and has one model
        ({"details": {"chip": "SM8550"}}, (A, B), ()),  # which of the two?
        ({"details": {"model": "B:1b"}}, (A, B), (B,)),  # the one that it was set up with
        ({"details": {"model": "gone"}}, (A, B), ()),
        ({"details": {"model": "gone"}}, (A,), (A,)),
        ({"origin": "adb"}, (A,), (A,)),
        ({"serial": "R58M"}, (A,), (A,)),
        ({"serial": "R58M", "warm_up": ()}, (A,), ()),  # the owner said: nothing
        ({"warm_up": ("b:1b", "x", "A:1B")}, (A, B), (B, A)),
        ({"origin": "embedded", "details": {"x": 1}}, (A,), ()),
        ({"kind": "openai", "details": {"x": 1}}, (A,), ()),
    ],
)
def test_what_a_node_should_hold(changes: Any, models: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    assert wishes_of(node_of("x", report_of(models), **changes), RULES) == wanted


def test_without_auto_only_what_an_entry_says() -> None:
    off = WarmthRules(auto=False)
    assert wishes_of(node_of("x", report_of((A,)), details={"chip": "x"}), off) == ()
    assert wishes_of(node_of("x", report_of((A,)), warm_up=(A,)), off) == (A,)


def test_a_gpu_node_is_none_of_ours() -> None:
    assert wishes_of(node_of("x", report_of((A,), gpu_node=True), warm_up=(A,)), RULES) == ()


# -- when it is loaded -------------------------------------------------------------------------------------------------


def test_a_phone_that_comes_into_service_is_warmed_at_once() -> None:
    looks = Looks()
    assert looks.at(phone()) == A
    assert looks.at(phone(A)) is None  # it has it now


def test_what_ran_out_or_was_unloaded_is_left_alone_until_the_phone_comes_anew() -> None:
    looks = Looks()
    looks.at(phone(A))
    assert looks.at(phone(), after=3600) is None
    assert looks.at(phone(), after=3600) is None
    looks.at(replace(phone(), status=NodeStatus.SILENT))
    assert looks.at(phone()) == A


def test_a_phone_that_fails_its_probes_and_answers_again_is_warmed_again() -> None:
    looks = Looks()
    looks.at(phone(A))
    assert looks.at(replace(phone(A), failed_probes=1, refused_probe=True)) is None  # nobody listened: it starts anew
    assert looks.at(phone()) == A


def test_a_probe_that_was_lost_is_no_reason_to_bring_back_what_was_let_go() -> None:
    looks = Looks()
    looks.at(phone(A))
    assert looks.at(phone()) is None  # somebody unloaded it
    assert looks.at(replace(phone(), failed_probes=1, last_error="silent for 2 s")) is None
    assert looks.at(phone()) is None


def test_nothing_is_begun_while_a_phone_does_not_answer() -> None:
    looks = Looks()
    assert looks.at(replace(phone(), failed_probes=1)) is None
    assert looks.at(phone()) == A


@pytest.mark.parametrize("status", [NodeStatus.UNKNOWN, NodeStatus.SILENT, NodeStatus.DRAINING, NodeStatus.DISABLED])
def test_a_phone_that_is_not_in_service_is_left_alone(status: NodeStatus) -> None:
    assert Looks().at(replace(phone(), status=status)) is None


def test_a_phone_that_rests_is_left_alone_until_it_is_fit() -> None:
    looks = Looks()
    assert looks.at(replace(phone(), care=Care(0.0, resting="too hot"))) is None
    assert looks.at(phone()) == A


def test_a_busy_phone_is_left_alone() -> None:
    looks = Looks()
    looks.load.in_flight = 1
    assert looks.at(phone()) is None
    looks.load.in_flight = 0
    assert looks.at(phone()) == A


@pytest.mark.parametrize(
    "load",
    [
        Load(busy_until=5000.0),
        Load(shunned_until=5000.0),
        Load(breaker=Breaker(BreakerState.OPEN, open_until=5000.0)),
        Load(breaker=Breaker(BreakerState.HALF_OPEN)),
    ],
)
def test_a_phone_in_trouble_is_left_alone(load: Load) -> None:
    looks = Looks()
    looks.load = load
    assert looks.at(phone()) is None


def test_a_model_that_was_pulled_and_a_new_wish_are_warmed() -> None:
    looks = Looks()
    assert looks.at(phone(models=(B,))) is None
    assert looks.at(phone(models=(A, B))) == A
    looks.at(phone(A))
    assert looks.at(phone(A, warm_up=(C, A))) is None  # A may be in use: the phone has to be idle first
    assert looks.at(phone(A, warm_up=(C, A)), after=RULES.idle_seconds) == C


# -- models that others ask for ----------------------------------------------------------------------------------------


def test_a_model_that_others_use_is_displaced_only_when_the_phone_is_idle() -> None:
    looks = Looks()
    looks.at(phone(A))
    looks.load.in_flight = 1
    assert looks.at(phone(B)) is None
    looks.load.in_flight, looks.load.answered = 0, 1
    assert looks.at(phone(B)) is None
    assert looks.at(phone(B), after=RULES.idle_seconds - 1) is None
    looks.load.answered = 2  # too short to be seen in flight
    assert looks.at(phone(B)) is None
    assert looks.at(phone(B), after=RULES.idle_seconds - 1) is None
    assert looks.at(phone(B), after=1.0) == A


def test_a_phone_that_others_ask_past_the_gateway_is_not_idle() -> None:
    def asked_at(moment: str) -> Node:
        found = report_of((A, B), resident=(B,))
        return replace(phone(B), resident={B: replace(found.resident[0], expires_at=moment)})

    looks = Looks()
    looks.at(phone(A))
    for moment in range(10):
        assert looks.at(asked_at(f"10:0{moment}"), after=RULES.idle_seconds - 1) is None
    assert looks.at(asked_at("10:09"), after=RULES.idle_seconds) == A


def test_a_model_that_keeps_coming_back_is_given_more_time() -> None:
    looks = Looks()
    looks.at(phone(A))
    waits = []
    for _ in range(4):
        looks.load.answered += 1
        looks.at(phone(B))
        began = looks.now
        while looks.at(phone(B)) is None:
            pass
        waits.append(looks.now - began)
        looks.at(phone(A))
    assert waits == [300.0, 600.0, 1200.0, 1800.0]
    looks.at(phone(A), after=3 * 3600)
    looks.load.answered += 1
    looks.at(phone(B))
    assert looks.at(phone(B), after=300.0) == A  # long ago


def test_other_models_in_memory_when_the_phone_comes_are_given_their_time_too() -> None:
    looks = Looks()
    assert looks.at(phone(B)) is None
    assert looks.at(phone(B), after=RULES.idle_seconds) == A


def test_several_wishes_are_loaded_one_after_the_other() -> None:
    looks = Looks()
    both = {"warm_up": (A, B)}
    assert looks.at(phone(**both)) == A
    looks.warmth = loaded(looks.warmth, A)
    assert looks.at(phone(A, **both)) is None  # nobody knows whether both have room: what is there may be in use
    assert looks.at(phone(A, **both), after=RULES.idle_seconds) == B
    assert looks.at(phone(A, B, **both), after=600.0) is None


def test_where_there_is_room_for_one_the_first_wish_wins_and_no_two_drive_each_other_out() -> None:
    looks = Looks()
    both = {"warm_up": (A, B)}
    looks.at(phone(A, **both))
    assert looks.warmth.pending == (B,)
    assert looks.at(phone(B, **both)) is None  # B came, A went: room for one
    assert looks.at(phone(B, **both), after=RULES.idle_seconds) == A
    looks.warmth = loaded(looks.warmth, A)
    for _ in range(100):
        assert looks.at(phone(A, **both), after=600.0) is None


def test_a_loading_is_in_the_way_of_requests_for_other_models_only() -> None:
    assert not is_in_the_way(Load(), A)
    assert not is_in_the_way(Load(in_flight=1, in_flight_by_model={A: 1, B: 0}), A)
    assert is_in_the_way(Load(in_flight=1, in_flight_by_model={B: 1}), A)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failures_are_given_longer_and_longer_pauses() -> None:
    looks = Looks()
    looks.at(phone())
    pauses = []
    for _ in range(8):
        looks.warmth = failed(looks.warmth, RULES, looks.now)
        began = looks.now
        while looks.at(phone(), after=1.0) is None:
            pass
        pauses.append(looks.now - began)
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0]
    looks.warmth = loaded(looks.warmth, A)
    assert (looks.warmth.failures, looks.warmth.pending) == (0, ())


def test_what_a_phone_refuses_is_not_asked_for_again_until_it_comes_anew() -> None:
    looks = Looks()
    assert looks.at(phone(warm_up=(A, B))) == A
    looks.warmth = refused(looks.warmth, A)
    assert looks.at(phone(warm_up=(A, B))) == B
    assert looks.at(phone(B, warm_up=(A, B)), after=3600.0) is None
    looks.at(replace(phone(), status=NodeStatus.SILENT))
    assert looks.at(phone(warm_up=(A, B))) == A


def test_a_phone_that_flaps_is_not_tried_each_time() -> None:
    looks = Looks()
    looks.at(phone())
    looks.warmth = failed(looks.warmth, RULES, looks.now)
    looks.at(replace(phone(), status=NodeStatus.SILENT), after=5.0)
    assert looks.at(phone(), after=5.0) is None
    assert looks.at(phone(), after=30.0) == A


def test_very_many_failures_are_no_overflow() -> None:
    warmth = replace(Warmth(), failures=5000)
    assert failed(warmth, RULES, 0.0).not_before == RULES.longest_pause_seconds
