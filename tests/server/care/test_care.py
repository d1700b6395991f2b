"""Less for the warm, a rest for the hot and the low, and the two marks of each rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.care import UNTROUBLED, Care, CareLimits, Condition, decide

LIMITS = CareLimits()
NOW = 100.0


def care_of(before: Care = UNTROUBLED, limits: CareLimits = LIMITS, **told: Any) -> Care:
    return decide(Condition(at=NOW, **told), before, limits, NOW)


def over(*readings: dict[str, Any], limits: CareLimits = LIMITS) -> list[bool]:
    """Does it rest after each of the readings?"""
    care, found = UNTROUBLED, []
    for told in readings:
        care = care_of(care, limits, **told)
        found.append(care.resting is not None)
    return found


def test_nothing_told_restricts_nothing() -> None:
    assert decide(None, UNTROUBLED, LIMITS, NOW) == UNTROUBLED
    assert care_of() == UNTROUBLED


@pytest.mark.parametrize(
    ("celsius", "factor"), [(-5.0, 1.0), (37.0, 1.0), (38.5, 0.8), (40.0, 0.6), (42.9, 0.2), (None, 1.0)]
)
def test_the_warmer_the_less(celsius: float | None, factor: float) -> None:
    care = care_of(temperature_c=celsius)
    assert (care.factor, care.resting) == (pytest.approx(factor), None)


@pytest.mark.parametrize(("status", "factor"), [(0, 1.0), (1, 0.75), (2, 0.4)])
def test_androids_word_counts_as_well(status: int, factor: float) -> None:
    assert care_of(thermal_status=status).factor == factor
    assert care_of(thermal_status=status, temperature_c=42.9).factor == 0.2


@pytest.mark.parametrize("told", [{"temperature_c": 43.0}, {"thermal_status": 3}, {"overheated": True}])
def test_the_hot_rest(told: dict[str, Any]) -> None:
    care = care_of(**told)
    assert (care.factor, care.hot, care.low) == (0.0, True, False)
    assert care.resting is not None and care.resting.startswith("hot: ")


def test_a_rest_for_heat_ends_at_the_lower_mark() -> None:
    readings = [{"temperature_c": celsius} for celsius in (42.9, 43.0, 42.9, 39.1, 39.0, 42.9)]
    assert over(*readings) == [False, True, True, True, False, False]


def test_a_rest_for_heat_ends_when_all_that_is_told_is_cool() -> None:
    readings = [(30.0, 3), (30.0, 2), (30.0, 1), (43.0, 0), (39.0, 2), (39.0, 1)]
    told = [{"temperature_c": celsius, "thermal_status": status} for celsius, status in readings]
    assert over(*told) == [True, True, False, True, True, False]


def test_a_low_phone_rests_until_it_is_charged() -> None:
    readings = [(16.0, False), (15.0, False), (16.0, True), (29.0, True), (30.0, True), (20.0, False)]
    told = [{"level": level, "charging": charging} for level, charging in readings]
    assert over(*told) == [False, True, True, True, False, False]


def test_a_low_phone_that_charges_works() -> None:
    assert over({"level": 5.0, "charging": True}) == [False]
    assert over({"level": 5.0}) == [True]  # nobody says that it charges


def test_a_nearly_empty_phone_rests_though_it_charges() -> None:
    """Many a charger brings less than this work takes, and at 0 the phone is gone."""
    levels = (4.0, 3.0, 4.0, 29.0, 30.0, 4.0)
    assert over(*({"level": level, "charging": True} for level in levels)) == [False, True, True, True, False, False]
    assert not care_of(level=3.0, charging=True).spent
    lower = CareLimits(low_level=1.0, charged_level=2.0)
    assert over(*({"level": level, "charging": True} for level in (3.0, 1.0, 2.0, 3.0)), limits=lower) == [
        False,
        True,
        False,
        False,
    ]
    assert over({"level": 0.0, "charging": True}) == [False]  # a phone that runs is not at 0: a gauge's excuse


def test_both_reasons_are_said_and_each_ends_by_itself() -> None:
    care = care_of(temperature_c=44.0, level=10.0, charging=False)
    assert care.resting == ("hot: 44.0 °C, rests until 39 °C; low battery: 10 %, not charging, rests until 30 %")
    cooled = care_of(care, temperature_c=30.0, level=20.0, charging=True)
    assert (cooled.hot, cooled.low, cooled.resting) == (False, True, "low battery: 20 %, charging, rests until 30 %")


def test_a_rest_knows_since_when() -> None:
    first = decide(Condition(temperature_c=44.0, at=NOW), UNTROUBLED, LIMITS, NOW)
    both = decide(Condition(temperature_c=44.5, level=9.0, charging=False, at=NOW + 60), first, LIMITS, NOW + 60)
    low = decide(Condition(temperature_c=30.0, level=9.0, charging=False, at=NOW + 90), both, LIMITS, NOW + 90)
    assert (first.since, both.since, low.since) == (NOW, NOW, NOW)
    again = decide(Condition(temperature_c=45.0, at=NOW + 300), UNTROUBLED, LIMITS, NOW + 300)
    assert again.since == NOW + 300
    assert care_of(before=low, level=90.0, temperature_c=30.0) == UNTROUBLED


def test_the_reason_follows_the_readings() -> None:
    care = care_of(care_of(temperature_c=44.0), temperature_c=41.0)
    assert care.resting == "hot: 41.0 °C, rests until 39 °C"
    assert "overheating" in str(care_of(overheated=True).resting)
    assert care_of(thermal_status=3).resting == "hot: thermal status severe, rests until light"


def test_old_words_are_forgotten() -> None:
    hot = Condition(temperature_c=50.0, level=1.0, at=NOW)
    resting = decide(hot, UNTROUBLED, LIMITS, NOW + LIMITS.stale_seconds)
    assert resting.hot and resting.low
    assert decide(hot, resting, LIMITS, NOW + LIMITS.stale_seconds + 0.1) == UNTROUBLED


def test_switched_off() -> None:
    assert care_of(limits=CareLimits(enabled=False), temperature_c=60.0) == UNTROUBLED


def test_the_owners_marks() -> None:
    limits = CareLimits(warm_c=30.0, hot_c=35.0, cooled_c=31.0, low_level=50.0, charged_level=60.0)
    assert over(*({"temperature_c": celsius} for celsius in (34.9, 35.0, 31.1, 31.0)), limits=limits) == [
        False,
        True,
        True,
        False,
    ]
    assert over({"level": 50.0}, {"level": 59.0}, {"level": 60.0}, limits=limits) == [True, True, False]


@pytest.mark.parametrize(
    ("told", "spent"),
    [
        ({"temperature_c": 48.9}, False),
        ({"temperature_c": 49.0}, True),
        ({"thermal_status": 3}, False),
        ({"thermal_status": 4}, True),
        ({"overheated": True}, True),
        ({"level": 4.0, "charging": False}, False),
        ({"level": 3.0, "charging": False}, True),
    ],
)
def test_who_cannot_bear_any_work(told: dict[str, Any], spent: bool) -> None:
    care = care_of(**told)
    assert (care.resting is not None, care.spent) == (True, spent)


def test_strain_tells_who_is_worse_off() -> None:
    hot = care_of(temperature_c=43.0)
    order = [
        care_of(hot, temperature_c=39.5),
        care_of(hot, temperature_c=41.0),
        hot,
        care_of(temperature_c=44.0, level=1.0, charging=True),
        care_of(thermal_status=5),
    ]
    strains = [care.strain for care in order]
    assert strains == sorted(strains) and len(set(strains)) == len(strains)
    assert care_of(level=15.0).strain == 1.0
    assert care_of(level=5.0).strain > 1.0


def test_only_what_is_too_warm_is_a_reason() -> None:
    assert care_of(thermal_status=3, temperature_c=30.0).resting == "hot: thermal status severe, rests until light"
    assert care_of(overheated=True, temperature_c=30.0).resting == "hot: the battery reports overheating"


@given(
    st.lists(st.floats(30.0, 50.0), max_size=30),
    st.lists(st.floats(1.0, 60.0), max_size=30),
)
def test_a_rest_begins_and_ends_at_two_marks_only(degrees: list[float], levels: list[float]) -> None:
    """Each change of a rest has a reading beyond the mark of that change: between the marks nothing flaps."""
    care = UNTROUBLED
    for celsius in degrees:
        was, care = care.hot, care_of(care, temperature_c=celsius)
        assert care.hot is (celsius >= LIMITS.hot_c if not was else celsius > LIMITS.cooled_c)
    for level in levels:
        was, care = care.low, care_of(care, level=level, charging=False)
        assert care.low is (level <= LIMITS.low_level if not was else level < LIMITS.charged_level)


@given(st.lists(st.floats(-0.2, 0.2), max_size=50), st.sampled_from([37.0, 39.0, 43.0]))
def test_a_reading_that_trembles_at_a_mark_changes_a_rest_once(noise: list[float], mark: float) -> None:
    care, changes = UNTROUBLED, 0
    for tremor in noise:
        was, care = care, care_of(care, temperature_c=mark + tremor)
        changes += was.hot is not care.hot
    assert changes <= 1


@given(st.floats(-40.0, 90.0), st.floats(0.0, 5.0), st.none() | st.integers(0, 2))
def test_the_warmer_never_gets_more(celsius: float, more: float, status: int | None) -> None:
    cooler = care_of(temperature_c=celsius, thermal_status=status)
    warmer = care_of(temperature_c=celsius + more, thermal_status=status)
    assert warmer.factor <= cooler.factor


NUMBERS = st.none() | st.floats(-40.0, 120.0)
CONDITIONS = st.builds(
    Condition,
    st.none() | st.floats(0.0, 100.0),
    st.sampled_from([None, True, False]),
    NUMBERS,
    st.none() | st.integers(0, 6),
    st.just(NOW),
    st.booleans(),
)


@given(st.lists(CONDITIONS, max_size=8))
def test_whatever_is_told_the_decision_is_whole(conditions: list[Condition]) -> None:
    care = UNTROUBLED
    for condition in conditions:
        care = decide(condition, care, LIMITS, NOW)
        assert (care.resting is not None) == (care.hot or care.low) == (care.factor == 0.0)
        assert 0.0 <= care.factor <= 1.0
        assert not care.spent or care.resting is not None
