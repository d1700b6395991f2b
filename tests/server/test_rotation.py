"""The rotation equals nginx's plain scan, pick by pick, whatever joins, leaves and is charged between."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.nodes import NodeId
from server.rotation import FURTHEST_CHARGE, STALE_ENTRIES, Rotation

NAMES = [NodeId(f"n{number}") for number in range(8)]
WEIGHTS = [1.0, 2.0, 3.0, 5.0, 0.5, 10.0]  # sums of these are exact


@dataclass
class PlainRotation:
    """nginx's smooth weighted round robin, as one would write it down: look at every seat at every pick."""

    weights: dict[NodeId, float] = field(default_factory=dict)  # of those that are free
    sums: dict[NodeId, float] = field(default_factory=dict)  # in the order of their first coming

    def pick_among(self, candidates: list[NodeId], restricted: bool = True) -> NodeId:
        best = None
        for node_id in self.sums:  # the first of the largest wins
            if node_id in candidates:
                value = self.sums[node_id] + self.weights[node_id]
                if best is None or value > self.sums[best] + self.weights[best]:
                    best = node_id
        assert best is not None
        self.turn(best, candidates if restricted else None)
        return best

    def turn(self, chosen: NodeId, candidates: list[NodeId] | None) -> None:
        total = sum(self.weights.values())
        far = self.sums[chosen] + self.weights[chosen] - total < -FURTHEST_CHARGE * total
        gaining = candidates if far and candidates is not None else list(self.weights)
        for node_id in gaining:
            self.sums[node_id] += self.weights[node_id]
        self.sums[chosen] -= sum(self.weights[node_id] for node_id in gaining)


class RotationEqualsThePlainScan(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rotation = Rotation()
        self.plain = PlainRotation()
        self.most_members = 0

    @rule(node_id=st.sampled_from(NAMES), weight=st.sampled_from(WEIGHTS))
    def join(self, node_id: NodeId, weight: float) -> None:
        self.rotation.join(node_id, weight)
        self.plain.weights[node_id] = weight
        self.plain.sums.setdefault(node_id, 0.0)
        self.most_members = max(self.most_members, len(self.plain.weights))

    @rule(node_id=st.sampled_from(NAMES))
    def leave(self, node_id: NodeId) -> None:
        self.rotation.leave(node_id)
        self.plain.weights.pop(node_id, None)

    @rule(node_id=st.sampled_from(NAMES))
    def forget(self, node_id: NodeId) -> None:
        self.rotation.forget(node_id)
        self.plain.weights.pop(node_id, None)
        self.plain.sums.pop(node_id, None)

    @precondition(lambda self: self.plain.weights)
    @rule(times=st.integers(1, 40))
    def pick(self, times: int) -> None:
        for _ in range(times):
            expected = self.plain.pick_among(list(self.plain.weights), restricted=False)
            assert self.rotation.pick() == expected

    @precondition(lambda self: self.plain.weights)
    @rule(data=st.data(), times=st.integers(1, 40))
    def pick_among(self, data: st.DataObject, times: int) -> None:
        free = sorted(self.plain.weights)
        candidates = data.draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
        for _ in range(times):
            assert self.rotation.pick_among(candidates) == self.plain.pick_among(candidates)

    @precondition(lambda self: self.plain.weights)
    @rule(data=st.data(), times=st.integers(1, 200))
    def charge(self, data: st.DataObject, times: int) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.plain.weights)))
        for _ in range(times):
            self.rotation.charge(node_id)
            self.plain.turn(node_id, [node_id])

    @invariant()
    def sums_are_equal(self) -> None:
        assert {node_id: self.rotation.sum_of(node_id) for node_id in self.plain.sums} == self.plain.sums
        assert self.rotation.total == sum(self.plain.weights.values())

    @invariant()
    def nothing_is_kept_of_those_that_are_gone(self) -> None:
        rotation = self.rotation
        assert set(rotation.order) == set(self.plain.sums) == set(rotation.parked) | set(rotation.group_of)

    @invariant()
    def heaps_stay_small(self) -> None:
        assert sum(len(group.members) for group in self.rotation.groups.values()) == len(self.plain.weights)
        for group in self.rotation.groups.values():
            assert len(group.heap) <= STALE_ENTRIES * self.most_members + 9


TestRotationEqualsThePlainScan = RotationEqualsThePlainScan.TestCase
TestRotationEqualsThePlainScan.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def rotation_of(**weights: float) -> Rotation:
    rotation = Rotation()
    for name, weight in weights.items():
        rotation.join(NodeId(name), weight)
    return rotation


def test_the_well_known_example() -> None:
    """Spreads bursts evenly by weight: 5, 1, 1 goes a a b a c a a, as in nginx."""
    rotation = rotation_of(a=5, b=1, c=1)
    assert "".join(rotation.pick() for _ in range(14)) == "aabacaa" * 2


def test_equal_seats_take_turns_in_the_order_of_their_coming() -> None:
    rotation = rotation_of(c=1, a=1, b=1)
    assert "".join(rotation.pick() for _ in range(6)) == "cabcab"


@pytest.mark.parametrize("weights", [(1, 2, 3), (10, 1, 1, 1), (0.5, 0.25, 2.0), (7,)])
def test_weights_hold_over_a_full_rotation(weights: tuple[float, ...]) -> None:
    rotation = rotation_of(**{f"n{index}": weight for index, weight in enumerate(weights)})
    smallest = min(weights)
    turns = round(sum(weights) / smallest * 4)
    picks = Counter(rotation.pick() for _ in range(turns))
    assert [picks[NodeId(f"n{index}")] for index in range(len(weights))] == [4 * w / smallest for w in weights]


def test_homecomings_are_charged() -> None:
    """Homecomings are charged to the rotation, so that over a full rotation the weights hold."""
    rotation = rotation_of(a=1, b=1, c=2)
    served = Counter({NodeId("a"): 5})
    for _ in range(5):
        rotation.charge(NodeId("a"))
    served.update(rotation.pick() for _ in range(15))
    assert served == {"a": 5, "b": 5, "c": 10}


def test_restricted_picks_are_charged() -> None:
    """A pick among a few (others excluded) is made good later by the others."""
    rotation = rotation_of(a=1, b=1, c=1, d=1)
    served = Counter(rotation.pick_among([NodeId("a"), NodeId("b")]) for _ in range(6))
    assert served == {"a": 3, "b": 3}
    served.update(rotation.pick() for _ in range(6))
    assert served == {"a": 3, "b": 3, "c": 3, "d": 3}


def test_a_long_run_of_homecomings_does_not_keep_newcomers_away_for_ever() -> None:
    """The charge is bounded: after a day of homecomings to one seat it is picked again within so many rounds."""
    rotation = rotation_of(a=1, b=1)
    for _ in range(10_000):
        rotation.charge(NodeId("a"))
    picks = [rotation.pick() for _ in range(round(2 * FURTHEST_CHARGE) + 2)]
    assert "a" in picks


def test_a_long_run_of_restricted_picks_neither_starves_the_rest_nor_floods_it() -> None:
    rotation = rotation_of(a=1, b=1, c=1)
    pair = [NodeId("a"), NodeId("b")]
    picks = Counter(rotation.pick_among(pair) for _ in range(10_000))
    assert picks == {"a": 5000, "b": 5000}
    assert abs(rotation.sum_of(NodeId("c"))) <= 3 * 3 * FURTHEST_CHARGE


def test_who_leaves_comes_back_where_it_was() -> None:
    rotation = rotation_of(a=1, b=1)
    assert rotation.pick() == "a"
    rotation.leave(NodeId("a"))
    before = rotation.sum_of(NodeId("a"))
    rotation.join(NodeId("a"), 1)
    assert rotation.sum_of(NodeId("a")) == before == -1
    assert rotation.pick() == "b"


def test_millions_of_picks_keep_fractional_weights() -> None:
    """Sums of floats drift; not so far that a seat loses its share."""
    rotation = rotation_of(a=0.1, b=0.2, c=0.7)
    picks = Counter(rotation.pick() for _ in range(20_000))
    assert abs(picks[NodeId("a")] - 2000) <= 1
    assert abs(picks[NodeId("b")] - 4000) <= 1
