"""Rests that outlive their nodes: what is kept of them, for how long, and of how many."""

from __future__ import annotations

from typing import Any

import pytest

from server.care import UNTROUBLED, Care, Condition, Rest, RestMemory
from server.care.memory import MOST_REMEMBERED, REMEMBERED_SECONDS

HOT, LOW = Care(0.0, "hot", hot=True), Care(0.0, "low", low=True)


def told(at: float = 10.0, **facts: Any) -> Condition:
    return Condition(at=at, **facts)


def test_a_rest_is_kept_with_the_words_that_it_was_decided_by() -> None:
    first, second = told(temperature_c=44.0), told(20.0, temperature_c=41.0)
    rest = Rest().renewed(first, HOT)
    assert rest == Rest(heat=first)
    assert rest.renewed(second, HOT) == Rest(heat=second)
    assert Rest().renewed(told(level=9.0), LOW) == Rest(charge=told(level=9.0))
    assert Rest().renewed(told(temperature_c=30.0), UNTROUBLED) == Rest()


def test_what_nobody_spoke_of_has_not_ended() -> None:
    """The reporter tells the level only, or nothing that is still believed."""
    rest = Rest(heat=told(temperature_c=44.0), charge=told(level=9.0))
    assert rest.renewed(told(50.0), UNTROUBLED) == rest
    assert rest.renewed(told(50.0, level=60.0), UNTROUBLED) == Rest(heat=rest.heat)
    assert rest.renewed(told(50.0, temperature_c=38.0), UNTROUBLED) == Rest(charge=rest.charge)


@pytest.mark.parametrize(
    ("at_rest", "now_told", "ended"),
    [
        ({"temperature_c": 44.0, "overheated": True}, {"temperature_c": 38.0}, True),
        ({"temperature_c": 44.0, "thermal_status": 1}, {"thermal_status": 1}, False),
        ({"thermal_status": 4}, {"thermal_status": 0}, True),
        ({"thermal_status": 4, "overheated": True}, {"thermal_status": 0}, False),
    ],
)
def test_a_rest_for_heat_ends_by_the_measure_or_by_every_verdict(
    at_rest: dict[str, Any], now_told: dict[str, Any], ended: bool
) -> None:
    rest = Rest(heat=told(**at_rest)).renewed(told(50.0, **now_told), UNTROUBLED)
    assert (rest.heat is None) == ended


def test_a_rest_is_remembered_for_a_time_and_no_longer_after_the_clock_was_set_back() -> None:
    rest = Rest(heat=told(5000.0, temperature_c=44.0), charge=told(6000.0, level=9.0))
    memory = RestMemory().renewed("one", rest, 6000.0)
    assert memory.of("one", 5000.0 + REMEMBERED_SECONDS) == rest
    assert memory.of("one", 5001.0 + REMEMBERED_SECONDS) == Rest(charge=rest.charge)
    assert memory.of("one", 6001.0 + REMEMBERED_SECONDS) == Rest()
    assert memory.of("one", 5000.0 - REMEMBERED_SECONDS) == Rest(heat=rest.heat)
    assert memory.of("other", 6000.0) == Rest()


def test_the_newest_words_of_a_rest() -> None:
    older, newer = told(1.0, level=9.0), told(2.0, temperature_c=44.0)
    assert Rest(newer, older).newest is newer and Rest(None, older).newest is older and Rest().newest is None


def test_those_that_recovered_take_no_room() -> None:
    memory = RestMemory().renewed("one", Rest(heat=told(0.0, temperature_c=44.0)), 0.0)
    assert memory.renewed("one", Rest(), 1.0) == RestMemory()
    assert memory.renewed("two", Rest(charge=told(0.0, level=9.0)), 9000.0) == memory, "it is too old already"
    assert memory.renewed("three", Rest(), 1.0) is memory


def test_of_too_many_the_oldest_is_forgotten() -> None:
    rest = Rest(heat=told(temperature_c=44.0))
    full = RestMemory({str(number): rest for number in range(MOST_REMEMBERED)}).renewed("0", rest, 10.0)
    after = full.renewed("new", rest, 10.0)
    assert len(after.rests) == MOST_REMEMBERED
    assert "1" not in after.rests and {"0", "2", "new"} <= set(after.rests)
