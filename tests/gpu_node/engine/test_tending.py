from __future__ import annotations

from gpu_node.engine.tending import LONGEST_PAUSE_SECONDS, PAUSE_SECONDS, ShortageCalls


def calls_within(calls: ShortageCalls, seconds: float, shortage: int, comes: bool = False, start: float = 0.0) -> int:
    count = 0
    for tick in range(int(seconds * 1000)):
        now = start + tick / 1000
        if calls.due(now) and calls.worth(shortage, now):
            calls.answered(comes, now)
            count += 1
    return count


def test_without_a_shortage_nobody_is_asked() -> None:
    assert calls_within(ShortageCalls(), 10, 0) == 0


def test_while_blocks_come_it_is_asked_as_often_as_is_allowed() -> None:
    assert calls_within(ShortageCalls(), 1, 3, comes=True) == 1 / PAUSE_SECONDS


def test_ever_less_often_while_nothing_comes() -> None:
    calls = ShortageCalls()
    assert 4 <= calls_within(calls, 2, 3) <= 6
    assert calls_within(calls, 20, 3, start=2.0) <= 20 / LONGEST_PAUSE_SECONDS + 1


def test_a_greater_shortage_is_told_soon() -> None:
    calls = ShortageCalls()
    calls_within(calls, 10, 3)
    assert calls_within(calls, 2 * PAUSE_SECONDS, 4, start=10.0) == 1


def test_a_new_shortage_after_a_time_without_is_told_at_once() -> None:
    calls = ShortageCalls()
    calls_within(calls, 10, 3)
    assert calls_within(calls, 1, 0, start=10.0) == 0
    assert calls_within(calls, 2 * PAUSE_SECONDS, 2, start=11.0) >= 1


def test_tending_for_other_reasons_counts_too() -> None:
    calls = ShortageCalls()
    calls.answered(True, 5.0)
    assert not calls.due(5.0 + PAUSE_SECONDS / 2) and calls.due(5.0 + PAUSE_SECONDS)


def test_what_becomes_urgent_is_asked_for_at_once() -> None:
    calls = ShortageCalls()
    assert calls.worth(5, 0.0)
    calls.answered(False, 0.0)
    assert not calls.worth(5, 0.06), "nothing came of it a moment ago"
    assert calls.worth(5, 0.06, urgent=True)
    calls.answered(False, 0.06)
    assert not calls.worth(5, 0.12, urgent=True), "nor of this"
    assert not calls.worth(5, 0.12)
