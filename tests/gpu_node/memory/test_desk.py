"""The head's side of lending, played against stages that have, refuse and lose memory as they like."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gpu_node.memory.desk import LendingDesk, Moves, Reclaim, StageCache, StageNow, most_blocks
from gpu_node.memory.leases import Lease
from gpu_node.memory.lending_policy import LendingPolicy

POLICY = LendingPolicy(chunk_blocks=4, pause_seconds=1.0, idle_seconds=10.0, move_seconds=1.0)


class Desks(RuleBasedStateMachine):
    """Three stages; what every device has in use of its own changes, what is lent is added to it."""

    @initialize(
        near=st.lists(st.integers(1, 20), min_size=3, max_size=3),
        sizes=st.lists(st.integers(1, 30), min_size=3, max_size=3),
        count=st.integers(1, 30),
    )
    def begin(self, near: list[int], sizes: list[int], count: int) -> None:
        near = [min(each, count) for each in near]
        stages = [StageCache(f"cpu:{at}", size, each) for at, (each, size) in enumerate(zip(near, sizes, strict=True))]
        self.desk = LendingDesk(replace(POLICY, host_bytes=200), stages, count)
        self.own = [0, 0, 0]
        self.now = 0.0
        self.open: set[int] = set()

    def stages_now(self) -> list[StageNow]:
        return [StageNow(1000, own + self.desk.book.lent_bytes(at), 300.0) for at, own in enumerate(self.own)]

    @rule(at=st.integers(0, 2), own=st.integers(0, 1100))
    def use(self, at: int, own: int) -> None:
        self.own[at] = own

    @rule(shortage=st.integers(0, 12), urgent=st.booleans(), data=st.data(), later=st.floats(0, 6))
    def turn(self, shortage: int, urgent: bool, data: st.DataObject, later: float) -> None:
        self.now += later
        desk, before = self.desk, self.stages_now()
        moves = desk.decide(shortage, before, self.now, urgent)
        lent = [desk.book.lent_bytes(at) for at in range(3)]
        for lease in moves.grants:
            lender, holder = lease.terms.lender, lease.terms.holder
            assert lent[lender] <= 700 and self.own[lender] + lent[lender] <= 800
            assert desk.stages[lender].near_count == desk.block_count, "who is short lends nothing"
            assert lease.terms.first >= desk.stages[holder].near_count
        assert shortage or not moves.grants
        numbers = [one.lease.number if isinstance(one, Reclaim) else one.number for one in self.all_of(moves)]
        assert len(numbers) == len(set(numbers)), "nothing is decided on twice"
        for reclaim in moves.reclaims:
            if not reclaim.to_host:
                desk.ended(reclaim.lease.number, reclaimed=True)
            elif data.draw(st.booleans()):
                desk.moved(reclaim.lease.number)
            else:
                for each in desk.book.bundle(reclaim.lease.number):
                    if each.number not in numbers or each.number == reclaim.lease.number:
                        desk.ended(each.number, reclaimed=True)
        for lease in moves.repayments:
            if any(lease.number == each.number for each in desk.book):
                desk.ended(lease.number)
        for lease in moves.grants:
            if not any(lease.number == each.number for each in desk.book):
                continue
            if data.draw(st.integers(0, 4)):
                desk.granted(lease.number)
            else:
                rest = [each.number for each in desk.book.bundle(lease.number) if each.number != lease.number]
                desk.refused(lease.number, self.now)
                for number in rest:
                    desk.ended(number)
        restored, retired = desk.changes()
        assert not self.open & set(restored) and set(retired) <= self.open
        self.open = (self.open | set(restored)) - set(retired)

    @staticmethod
    def all_of(moves: Moves) -> list[Lease | Reclaim]:
        return [*moves.grants, *moves.reclaims, *moves.repayments]

    @rule(highest=st.integers(0, 30))
    def step(self, highest: int) -> None:
        self.desk.used(highest, self.now)

    @invariant()
    def what_is_open_has_a_place_everywhere(self) -> None:
        if not hasattr(self, "desk"):
            return
        desk = self.desk
        for block in range(desk.promised, desk.block_count):
            placed = all(
                stage.near_count > block or desk.book.covers(at, block) for at, stage in enumerate(desk.stages)
            )
            assert (block in self.open) == placed
        status = desk.status(self.now)
        assert status.lent_bytes == sum(lease.size_bytes for lease in status.leases if lease.state != "host")
        assert all(desk.book.host_bytes(at) <= desk.policy.host_bytes for at in range(3))


TestDesks = Desks.TestCase
TestDesks.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def desk_of(near: tuple[int, ...] = (4, 20), count: int = 20, **changes: float) -> LendingDesk:
    stages = [StageCache(f"cpu:{at}", 10, each) for at, each in enumerate(near)]
    return LendingDesk(replace(POLICY, **changes), stages, count)  # type: ignore[arg-type]


IDLE = StageNow(1000, 100, 1e6)


def accept(desk: LendingDesk, moves: Moves) -> tuple[int, ...]:
    for lease in moves.grants:
        desk.granted(lease.number)
    return desk.changes()[0]


def test_a_shortage_is_met_in_chunks_from_the_lowest_block_on() -> None:
    desk = desk_of()
    assert desk.promised == 4 and desk.wants_more
    assert accept(desk, desk.decide(1, [IDLE, IDLE], 0.0)) == (4, 5, 6, 7)
    assert accept(desk, desk.decide(6, [IDLE, IDLE], 0.0)) == (8, 9, 10, 11, 12, 13)
    assert not desk.decide(0, [IDLE, IDLE], 1.0)
    assert accept(desk, desk.decide(50, [IDLE, IDLE], 0.0)) == tuple(range(14, 20))
    assert not desk.wants_more and not desk.decide(5, [IDLE, IDLE], 0.0)
    status = desk.status(3.0)
    assert (status.lent_bytes, status.granted, status.refused) == (160, 3, 0)
    assert {(lease.lender, lease.holder) for lease in status.leases} == {("cpu:1", "cpu:0")}
    assert status.leases[0].age_seconds == 3.0


def test_every_stage_that_is_short_gets_its_own_lease() -> None:
    desk = desk_of((4, 20, 6))
    moves = desk.decide(1, [IDLE] * 3, 0.0)
    spans = [(lease.terms.holder, lease.terms.first, lease.terms.behind, lease.terms.bundle) for lease in moves.grants]
    assert spans == [(0, 4, 6, 1), (0, 6, 8, 2), (2, 6, 8, 2)], "a bundle ends where another stage runs out"
    assert accept(desk, moves) == (4, 5, 6, 7)


def test_what_was_urgent_is_reclaimed_after_what_came_along() -> None:
    desk = desk_of(chunk_blocks=8)
    accept(desk, desk.decide(3, [IDLE, IDLE], 0.0, urgent=True))
    spans = [(lease.terms.first, lease.terms.behind, lease.terms.priority) for lease in desk.book]
    assert spans == [(4, 7, 1), (7, 12, 0)]
    accept(desk, desk.decide(2, [IDLE, IDLE], 1.0, urgent=True))
    moves = desk.decide(0, [IDLE, StageNow(1000, 900, 1e6)], 2.0)
    assert [one.lease.terms.first for one in moves.reclaims] == [14, 7], "and the youngest of those first"


def test_less_is_granted_where_there_is_less_and_a_refusal_is_not_repeated_at_once() -> None:
    desk = desk_of()
    tight = StageNow(1000, 775, 1e6)
    assert accept(desk, desk.decide(4, [IDLE, tight], 0.0)) == (4, 5)
    full = StageNow(1000, 795, 1e6)
    assert not desk.decide(4, [IDLE, full], 0.0)
    assert not desk.decide(4, [IDLE, IDLE], 0.5), "it has just been refused"
    assert desk.status(0.5).refused == 1
    assert desk.decide(4, [IDLE, IDLE], 0.6, urgent=True).grants[0].terms.priority == 1, "an urgent one does not wait"
    assert desk.decide(4, [IDLE, IDLE], 1.5).grants[0].terms.priority == 0


def test_a_lender_in_need_gets_back_what_it_needs_and_no_more() -> None:
    desk = desk_of()
    for turn in range(4):
        accept(desk, desk.decide(4, [IDLE, IDLE], float(turn)))
    moves = desk.decide(3, [IDLE, StageNow(1000, 850, 1e6)], 9.0)
    assert [(one.lease.terms.first, one.to_host) for one in moves.reclaims] == [(12, True)]
    assert not moves.grants, "who is in need lends nothing"
    for one in moves.reclaims:
        desk.moved(one.lease.number)
    assert desk.changes() == ((), ()), "what lies in host memory can be used"
    status = desk.status(9.0)
    assert (status.lent_bytes, status.host_bytes, status.reclaimed, status.moved_blocks) == (80, 80, 1, 8)


@pytest.mark.parametrize("changes", [{"move_seconds": 0.0}, {"host_bytes": 39}])
def test_what_cannot_be_moved_in_time_is_computed_anew(changes: dict[str, float]) -> None:
    desk = desk_of((4, 20, 4), **changes)
    accept(desk, desk.decide(4, [IDLE] * 3, 0.0))
    moves = desk.decide(0, [IDLE, StageNow(1000, 801, 1e6), IDLE], 1.0)
    assert [one.to_host for one in moves.reclaims] == [False]
    assert len(moves.repayments) == 1 and moves.repayments[0].terms.holder != moves.reclaims[0].lease.terms.holder
    desk.ended(moves.reclaims[0].lease.number, reclaimed=True)
    desk.ended(moves.repayments[0].number)
    assert desk.changes() == ((), (4, 5, 6, 7))
    assert (desk.status(1.0).recomputed_blocks, desk.status(1.0).lent_bytes) == (4, 0)


def test_leases_that_nobody_needs_are_given_back() -> None:
    desk = desk_of()
    accept(desk, desk.decide(4, [IDLE, IDLE], 0.0))
    accept(desk, desk.decide(4, [IDLE, IDLE], 0.0))
    desk.used(5, 8.0)
    assert [lease.terms.first for lease in desk.decide(0, [IDLE, IDLE], 12.0).repayments] == [8]
    assert not desk.decide(3, [IDLE, IDLE], 12.0).repayments, "while more is needed nothing is given back"


def test_so_many_blocks_can_be_there_at_once() -> None:
    stages = [StageCache("a", 10, 20), StageCache("b", 10, 95)]
    now_at = [StageNow(400, 200), StageNow(1150, 200)]
    count = most_blocks(stages, now_at, 1000, LendingPolicy())
    # b keeps 10 bytes of each block, and lends 10 for each that a lacks; it is quiet up to 920 of its 1150 bytes.
    assert count == 46 and 200 + count * 10 + (count - 20) * 10 <= 920 < 200 + 47 * 10 + 27 * 10
    assert most_blocks(stages, now_at, 30, LendingPolicy()) == 30
    assert most_blocks(stages, now_at, 1000, LendingPolicy(ratio=0.0)) == 20
    desk = LendingDesk(LendingPolicy(), [stages[0], replace(stages[1], near_count=count)], count)
    used = [StageNow(400, 400), StageNow(1150, 200 + count * 10)]
    moves = desk.decide(100, used, 0.0)
    assert accept(desk, moves) == tuple(range(20, 46)), "and the desk grants them all"
