"""Each source has its share, all together have theirs, and inventing sources gains nothing."""

from __future__ import annotations

from transport.allowances import Allowances, Rate

PLENTY = Rate(1000, 1000)


def test_a_burst_and_then_a_rate() -> None:
    allowances = Allowances(Rate(per_second=2, burst=3), PLENTY)
    assert [allowances.take("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [allowances.take("a", 10.5) for _ in range(2)] == [True, False]
    assert [allowances.take("a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_sources_do_not_use_up_each_others_share() -> None:
    allowances = Allowances(Rate(1, 1), PLENTY)
    assert [allowances.take(source, 1.0) for source in ("a", "a", "b")] == [True, False, True]


def test_all_together_are_bounded_however_many_they_are() -> None:
    allowances = Allowances(Rate(10, 10), Rate(per_second=5, burst=20), sources=8)
    assert all(allowances.take(number, 1.0) for number in range(1000))
    assert len(allowances) == 8
    assert sum(allowances.take_together(1.0) for _ in range(1000)) == 20
    assert sum(allowances.take_together(2.0) for _ in range(1000)) == 5


def test_a_clock_that_goes_back_gives_nothing() -> None:
    allowances = Allowances(Rate(1, 1), PLENTY)
    assert [allowances.take("a", now) for now in (5.0, 4.0, 3.0)] == [True, False, False]
