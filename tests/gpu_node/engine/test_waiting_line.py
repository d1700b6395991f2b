"""Equal turns for callers, priority within one, and those that come back first."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.block_chain import BlockChain
from gpu_node.engine.planned import Submission
from gpu_node.engine.sequence_state import ENOUGH_PREEMPTIONS, SequenceState
from gpu_node.engine.waiting_line import WaitingLine


def state(identity: int, caller: str = "", priority: int = 0, preempted: int = 0) -> SequenceState:
    submission = Submission((1,), 10, caller=caller, priority=priority)
    return SequenceState(identity, submission, [1], 10, BlockChain("", 4), True, preempted=preempted)


def drained(line: WaitingLine) -> list[int]:
    order = []
    while (head := line.peek()) is not None:
        assert line.take() is head
        order.append(head.id)
    assert len(line) == 0
    return order


def test_callers_take_turns() -> None:
    line = WaitingLine()
    for identity in range(1, 7):
        line.enter(state(identity, "many"))
    line.enter(state(7, "few"))
    line.enter(state(8, "few"))
    assert drained(line) == [1, 7, 2, 8, 3, 4, 5, 6]


def test_priority_counts_within_one_caller_only() -> None:
    line = WaitingLine()
    for identity, caller, priority in [(1, "a", 0), (2, "a", 9), (3, "b", -5), (4, "a", 9)]:
        line.enter(state(identity, caller, priority))
    assert drained(line) == [2, 3, 4, 1]


def test_who_comes_back_goes_first_the_most_senior_of_them_ahead() -> None:
    line = WaitingLine()
    line.enter(state(1, priority=9))
    for one in (state(4), state(3), state(5, priority=1), state(6, preempted=ENOUGH_PREEMPTIONS)):
        line.restore(one)
    assert drained(line) == [6, 5, 3, 4, 1]


def test_a_caller_who_was_served_and_comes_again_is_behind_the_others() -> None:
    line = WaitingLine()
    line.enter(state(1, "a"))
    line.enter(state(2, "b"))
    line.take()
    line.enter(state(3, "a"))
    assert drained(line) == [2, 3]


def test_leaving_from_anywhere() -> None:
    line, back, fresh = WaitingLine(), state(1), state(2)
    line.restore(back)
    line.enter(fresh)
    assert line.leave(back) and line.leave(fresh) and not len(line)
    assert not line.leave(back) and not line.leave(fresh)
    assert line.peek() is None and not line.lines


def test_leaving_for_who_looks_alike_is_no_leaving() -> None:
    line = WaitingLine()
    line.enter(state(1))
    assert not line.leave(state(1)) and len(line) == 1


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_while_all_wait_no_caller_is_two_turns_ahead(seed: int, callers: int) -> None:
    random, line = Random(seed), WaitingLine()
    for identity in range(60):
        line.enter(state(identity, str(random.randrange(callers)), random.randrange(3)))
    served: Counter[str] = Counter()
    waiting = set(line.lines)
    while line.fresh:
        served[line.take().submission.caller] += 1
        waiting &= set(line.lines)
        counts = [served[caller] for caller in waiting]
        assert not counts or max(counts) - min(counts) <= 1
