"""The index of free seats, and fleets of a thousand nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.affinity import Memories
from server.breaker import Breaker, BreakerState
from server.care import UNTROUBLED, Care
from server.nodes import Load, NodeId, NodeStatus
from server.roster import SWEPT_AT, Roster
from server.routing import Choice, Refusal, choose, suits
from tests.server.roster_parts import (
    DEMAND,
    NOW,
    POLICY,
    change,
    chosen,
    home_at,
    occupy,
    refused,
)
from tests.server.scripted_nodes import MODEL, node_of, report_of, roster_of, seat_of

NAMES = st.sampled_from([f"n{number}" for number in range(5)])


class TheIndexEqualsAScan(RuleBasedStateMachine):
    """Whatever happens to nodes and loads, in whatever order: the free seats are those that a plain look finds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.roster = Roster(MODEL)
        self.memories = Memories()
        self.loads: dict[str, Load] = {}

    @rule(
        name=NAMES,
        status=st.sampled_from([NodeStatus.READY, NodeStatus.READY, NodeStatus.DRAINING, NodeStatus.SILENT]),
        models=st.sampled_from([(MODEL,), ("other", MODEL), ("other",)]),
        slots=st.integers(1, 3),
        weight=st.sampled_from([1.0, 2.0, None]),
        last_resort=st.booleans(),
        care=st.sampled_from([UNTROUBLED, UNTROUBLED, Care(0.5), Care(0.0, "hot"), Care(0.0, "hot", spent=True)]),
    )
    def place(
        self,
        name: str,
        status: NodeStatus,
        models: tuple[str, ...],
        slots: int,
        weight: float | None,
        last_resort: bool,
        care: Care,
    ) -> None:
        node = node_of(name, report_of(models), status, max_concurrency=slots, weight=weight, last_resort=last_resort)
        node = replace(node, care=care)
        self.roster.place(node, self.loads.setdefault(name, Load()), self.memories.of(node.id), self.now)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.roster.remove(NodeId(name))

    @rule(name=NAMES, in_flight=st.integers(0, 3), rest=st.sampled_from([-1.0, 0.5, 2.0]), field=st.integers(0, 4))
    def change(self, name: str, in_flight: int, rest: float, field: int) -> None:
        load = self.loads.setdefault(name, Load())
        until = self.now + rest
        if field == 0:
            load.in_flight = in_flight
        elif field == 1:
            load.shunned_until = until
        elif field == 2:
            load.busy_until = until
        elif field == 3:
            load.breaker = Breaker(BreakerState.OPEN, 3, 1, until)
        else:
            load.breaker = Breaker(BreakerState.HALF_OPEN, 3, 1) if in_flight else Breaker()
        self.roster.touch(NodeId(name), self.now)

    @rule(name=NAMES, speed=st.sampled_from([5.0, 10.0, 40.0]))
    def reweigh(self, name: str, speed: float) -> None:
        self.loads.setdefault(name, Load()).tokens_per_second = speed
        self.roster.reweigh(NodeId(name), self.now)

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def look(self) -> None:
        outcome = choose(DEMAND, self.roster, POLICY, self.now)
        regular, reserve, spared = self.scan()
        in_service = [s for s in self.roster.seats.values() if s.admits(self.now)]
        regulars = [seat for seat in in_service if seat.serves(self.now) and not seat.node.spec.last_resort]
        reserves = [seat for seat in in_service if seat.serves(self.now) and seat.node.spec.last_resort]
        eligible = regular if regulars else reserve if reserves else spared
        if isinstance(outcome, Choice):
            assert outcome.seat.id in eligible
        else:
            assert not eligible
            assert outcome.reason == ("busy" if in_service else "none_in_service")
            rests = [s.rests_until for s in self.roster.seats.values() if s.rests_until > self.now]
            full = [s for s in self.roster.seats.values() if s.load.in_flight >= s.slots]
            trials = [s for s in self.roster.seats.values() if s.load.breaker.state is BreakerState.HALF_OPEN]
            if rests and not full and not trials:
                assert outcome.retry_at is not None
                assert self.now < outcome.retry_at <= min(rests)

    def scan(self) -> tuple[set[NodeId], set[NodeId], set[NodeId]]:
        free = {
            seat.id: seat
            for seat in self.roster.seats.values()
            if seat.load.in_flight < seat.slots and seat.load.breaker.admits(self.now) and seat.rests_until <= self.now
        }
        spared = {name for name, seat in free.items() if seat.node.resting}
        reserve = {name for name, seat in free.items() if seat.node.spec.last_resort} - spared
        return set(free) - reserve - spared, reserve, spared

    @invariant()
    def the_index_equals_a_scan(self) -> None:
        self.roster.wake(self.now)
        regular, reserve, spared = self.scan()
        assert set(self.roster.spared) == spared
        assert set(self.roster.free) == regular
        assert set(self.roster.reserve) == reserve
        assert all(self.roster.free[name] is self.roster.seats[name] for name in self.roster.free)
        assert set(self.roster.rotation.group_of) == regular
        for name in self.roster.free:
            assert self.roster.rotation.group_of[name].weight == self.roster.seats[name].weight
        assert not any(seat.node.care.spent for seat in self.roster.seats.values())
        assert self.roster.troubled == {s.id for s in self.roster.seats.values() if s.node.resting}
        assert self.roster.last_resorts == {s.id for s in self.roster.seats.values() if s.node.spec.last_resort}


TestTheIndexEqualsAScan = TheIndexEqualsAScan.TestCase
TestTheIndexEqualsAScan.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_node_that_fails_time_and_again_is_noted_once() -> None:
    """Also in the roster of a model that nobody asks for, which is never woken."""
    roster = roster_of(*(node_of(f"n{number}") for number in range(3)))
    for second in range(10_000):
        change(roster, f"n{second % 3}", now=float(second), shunned_until=second + 1.0)
    assert len(roster.resting) <= 2 * 3 + SWEPT_AT
    for second in range(10_000, 20_000):
        change(roster, "n1", now=float(second), shunned_until=second + 30_000.0 - 1.5 * (second - 10_000))
    assert len(roster.resting) <= 2 * 3 + SWEPT_AT
    assert chosen(roster, now=100_000.0)


def test_a_rest_that_grows_and_shrinks_ends_when_it_does() -> None:
    roster = roster_of(node_of("a"))
    change(roster, "a", now=0.0, shunned_until=10.0)
    change(roster, "a", now=1.0, shunned_until=5.0)
    assert refused(roster, now=2.0).retry_at == 5.0
    change(roster, "a", now=3.0, shunned_until=8.0)
    assert refused(roster, now=6.0).retry_at == 8.0
    assert chosen(roster, now=8.0) == "a"


def test_nothing_is_kept_of_a_node_that_is_gone() -> None:
    roster = roster_of(node_of("stays"), node_of("goes"), node_of("rests"))
    change(roster, "rests", shunned_until=NOW + 5.0)
    for name in ("goes", "rests"):
        roster.forget(NodeId(name))
    kept = (roster.seats, roster.free, roster.rotation.order, roster.rotation.group_of)
    assert [list(names) for names in kept] == [["stays"]] * 4
    assert (roster.looks, roster.rotation.parked) == ({}, {})


def test_a_thousand_nodes_each_get_their_weight() -> None:
    roster = roster_of(*(node_of(f"n{number}", weight=1.0 + number % 3) for number in range(1000)))
    served = Counter(chosen(roster) for _ in range(sum(1 + number % 3 for number in range(1000))))
    assert all(served[f"n{number}"] == 1 + number % 3 for number in range(1000))


def test_a_thousand_busy_nodes_are_waited_for() -> None:
    roster = roster_of(*(node_of(f"n{number}") for number in range(1000)))
    for name in list(roster.seats):
        occupy(roster, name)
    assert refused(roster) == Refusal("busy")
    occupy(roster, "n500", -1)
    assert chosen(roster) == "n500"


def test_demands_without_wishes_are_alike() -> None:
    assert DEMAND.plain()
    for wish in ({"home": home_at("a")}, {"excluded": frozenset("a")}, {"able": lambda _: True}, {"context_tokens": 1}):
        assert not replace(DEMAND, **wish).plain()
    assert suits(seat_of(node_of("a")), DEMAND)
