"""Phones that leave while they rest, or fall silent, and come back half recovered."""

from __future__ import annotations

from typing import Any

import pytest

from server.care import UNTROUBLED, CareLimits, Condition
from server.care.memory import REMEMBERED_SECONDS
from server.nodes import Node, NodeId
from server.registry import (
    NodeCondition,
    NodeGone,
    NodeListed,
    NodeProbed,
    NodeUnlisted,
    ProbeFailed,
    Registry,
    SamePhone,
)
from tests.server.scripted_nodes import report_of, spec_of

A, B = NodeId("a"), NodeId("b")
GOOD = report_of(["one"])


class Fleet:
    """A registry and a clock; `a` is listed, ready, and rests at 44 degrees since second 10."""

    def __init__(self, **told: Any) -> None:
        self.registry = Registry()
        self.come("a", 0.0)
        self.registry.emit(NodeProbed(A, GOOD, 1.0))
        self.tell(10.0, **(told or {"temperature_c": 44.0}))
        assert self.a.resting

    @property
    def a(self) -> Node:
        return self.registry.fleet.nodes[A]

    def tell(self, at: float, node: NodeId = A, **facts: Any) -> None:
        self.registry.emit(NodeCondition(node, Condition(at=at, **facts), at))

    def come(self, name: str, at: float, **changes: Any) -> None:
        self.registry.emit(NodeListed(spec_of(name, **changes), at))

    def leave(self, at: float) -> None:
        self.registry.emit(NodeUnlisted(A, at))
        self.registry.emit(NodeGone(A))


def test_a_phone_that_was_plugged_in_again_rests_until_it_is_cool() -> None:
    fleet = Fleet()
    fleet.leave(600.0)
    fleet.come("a", 900.0)
    assert (fleet.a.condition, fleet.a.care) == (None, UNTROUBLED), "what it told is too old, and nothing is known yet"
    fleet.tell(901.0, temperature_c=41.0)
    assert fleet.a.care.hot and fleet.a.care.since == 901.0
    fleet.tell(960.0, temperature_c=39.0)
    assert fleet.a.resting is None
    fleet.tell(990.0, temperature_c=41.0)
    assert fleet.a.resting is None, "it has recovered, and the next rest begins at the upper mark"


def test_one_that_is_back_at_once_rests_from_the_first_moment() -> None:
    fleet = Fleet()
    fleet.leave(20.0)
    fleet.come("a", 30.0)
    assert fleet.a.care.hot and fleet.a.condition == Condition(temperature_c=44.0, at=10.0)
    fleet.registry.emit(NodeProbed(A, GOOD, 191.0))
    assert fleet.a.resting is None, "its words are too old by now"


@pytest.mark.parametrize("event", [NodeProbed(A, GOOD, 300.0), ProbeFailed(A, "no answer", 300.0)])
def test_one_whose_network_was_lost_rests_again_when_it_tells_that_it_has_not_recovered(
    event: NodeProbed | ProbeFailed,
) -> None:
    fleet = Fleet()
    fleet.registry.emit(event)
    assert fleet.a.resting is None, "a reporter that died costs no phone"
    fleet.tell(400.0, temperature_c=41.0)
    assert fleet.a.care.hot


def test_a_low_battery_is_remembered_as_well_and_each_reason_for_itself() -> None:
    fleet = Fleet(level=9.0, charging=False, temperature_c=44.0)
    fleet.leave(20.0)
    fleet.come("a", 600.0)
    fleet.tell(601.0, temperature_c=38.0)
    assert fleet.a.resting is None, "cool, and of its charge it says nothing"
    fleet.tell(630.0, level=20.0, charging=True, temperature_c=41.0)
    assert fleet.a.care.low and not fleet.a.care.hot
    fleet.tell(660.0, level=31.0, charging=True, temperature_c=41.0)
    assert fleet.a.resting is None


def test_after_an_hour_nothing_is_remembered() -> None:
    fleet = Fleet()
    fleet.leave(20.0)
    fleet.come("a", 11.0 + REMEMBERED_SECONDS)
    fleet.tell(12.0 + REMEMBERED_SECONDS, temperature_c=41.0)
    assert fleet.a.resting is None


def test_the_phone_is_known_by_its_serial_when_it_is_another_entry() -> None:
    fleet = Fleet()
    fleet.leave(20.0)
    fleet.come("b", 30.0, serial="a")
    assert fleet.registry.fleet.nodes[B].care.hot
    fleet.come("c", 30.0)
    assert fleet.registry.fleet.nodes[NodeId("c")].resting is None


def test_a_phone_that_is_reached_another_way_is_as_hot_as_it_was() -> None:
    fleet = Fleet()
    fleet.come("b", 20.0)
    assert fleet.registry.fleet.nodes[B].resting is None
    fleet.registry.emit(SamePhone(B, A, 21.0))
    assert fleet.registry.fleet.nodes[B].care.hot
    fleet.tell(500.0, B, temperature_c=41.0)
    assert fleet.registry.fleet.nodes[B].care.hot
    fleet.registry.emit(SamePhone(NodeId("gone"), A, 22.0))
    fleet.leave(23.0)
    fleet.come("c", 600.0)
    fleet.registry.emit(SamePhone(NodeId("c"), A, 601.0))
    fleet.tell(602.0, NodeId("c"), temperature_c=41.0)
    assert fleet.registry.fleet.nodes[NodeId("c")].care.hot, "also of a node that has gone"


def test_without_care_nothing_is_remembered() -> None:
    registry = Registry(CareLimits(enabled=False))
    registry.emit(NodeListed(spec_of("a"), 0.0))
    registry.emit(NodeCondition(A, Condition(at=1.0, temperature_c=44.0), 1.0))
    assert not registry.fleet.rests.rests
