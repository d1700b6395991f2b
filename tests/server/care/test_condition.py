"""Readings of several sources become one condition, and each fact grows old by itself."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from server.care import UNTROUBLED, CareLimits, Condition, decide, renewed

BATTERY = Condition(50.0, True, 35.0, at=10.0)
THERMAL = Condition(thermal_status=3, at=20.0)


def test_the_first_reading_is_all_that_is_known() -> None:
    assert renewed(None, THERMAL) is THERMAL


def test_heat_and_battery_are_told_by_turns() -> None:
    both = renewed(BATTERY, THERMAL)
    older = dict.fromkeys(("level", "charging", "temperature_c"), 10.0)
    assert both == Condition(50.0, True, 35.0, 3, at=20.0, earlier=older)
    again = renewed(both, Condition(49.0, False, 36.0, at=40.0, overheated=False))
    assert again == Condition(49.0, False, 36.0, 3, at=40.0, overheated=False, earlier={"thermal_status": 20.0})


def test_what_a_newer_reading_leaves_out_stays() -> None:
    """One source tells the level alone, the other everything: a hot phone is none the cooler for it."""
    hot = Condition(50.0, False, 44.0, 3, at=10.0, overheated=True)
    later = renewed(hot, Condition(49.0, at=25.0))
    assert (later.level, later.charging, later.temperature_c, later.overheated) == (49.0, False, 44.0, True)
    assert later.believed(195.0, 180.0) == Condition(49.0, at=25.0, earlier=later.earlier)


def test_facts_of_one_moment_have_no_other() -> None:
    assert renewed(THERMAL, Condition(50.0, at=20.0)) == Condition(50.0, thermal_status=3, at=20.0)


def test_each_fact_grows_old_by_itself() -> None:
    both = renewed(BATTERY, THERMAL)
    assert both.believed(70.0, 60.0) is both
    only_heat = both.believed(75.0, 60.0)
    assert (only_heat.level, only_heat.temperature_c, only_heat.thermal_status) == (None, None, 3)
    assert not both.believed(81.0, 60.0).tells_anything
    later = renewed(both, Condition(49.0, at=60.0))
    assert (later.believed(81.0, 60.0).level, later.believed(81.0, 60.0).thermal_status) == (49.0, None)


def test_one_moment_for_all() -> None:
    whole = Condition(50.0, True, 35.0, 3, at=10.0)
    assert whole.believed(70.0, 60.0) is whole
    assert not whole.believed(70.5, 60.0).tells_anything


def test_a_clock_that_was_set_back_makes_no_reading_young_for_ever() -> None:
    """A reading of tomorrow is as little worth as one of yesterday."""
    assert not Condition(50.0, at=90_000.0).believed(10.0, 60.0).tells_anything
    assert Condition(50.0, at=12.0).believed(10.0, 60.0).tells_anything


def test_words() -> None:
    assert (THERMAL.thermal_word, BATTERY.thermal_word) == ("severe", None)
    assert not Condition(at=5.0).tells_anything
    assert Condition(overheated=False).tells_anything


PARTS = st.builds(
    Condition,
    st.none() | st.floats(0.0, 100.0),
    st.none() | st.booleans(),
    st.none() | st.floats(20.0, 50.0),
    st.none() | st.integers(0, 6),
    overheated=st.none() | st.booleans(),
)


@given(st.lists(st.tuples(st.floats(0.0, 30.0), PARTS), min_size=1, max_size=10))
def test_each_fact_is_the_one_told_last(readings: list[tuple[float, Condition]]) -> None:
    """Whatever the sources leave out, by turns."""
    known, now, facts = None, 0.0, {}
    for gap, part in readings:
        now += gap
        known = renewed(known, replace(part, at=now))
        facts |= {name: (value, now) for name in NAMES if (value := getattr(part, name)) is not None}
    assert known is not None and known.at == now
    assert {name: (getattr(known, name), known.earlier.get(name, now)) for name in facts} == facts
    believed = known.believed(now, 60.0)
    for name in NAMES:
        value, moment = facts.get(name, (None, now))
        assert getattr(believed, name) == (value if now - moment <= 60.0 else None)


NAMES = ("level", "charging", "temperature_c", "thermal_status", "overheated")


@given(st.lists(st.sampled_from(["whole", "level", "status"]), max_size=20), st.floats(39.1, 42.9))
def test_two_sources_that_tell_different_facts_do_not_make_a_phone_flap(sources: list[str], celsius: float) -> None:
    """Hot, then between the marks: at rest throughout, whoever speaks and whatever is left out."""
    told = {
        "whole": Condition(50.0, True, celsius, overheated=False),
        "level": Condition(50.0),
        "status": Condition(thermal_status=0),
    }
    limits, now = CareLimits(), 0.0
    known = Condition(50.0, True, 43.0, at=now)
    care = decide(known, UNTROUBLED, limits, now)
    for source in sources:
        now += 5.0
        part = told[source]
        known = renewed(known, Condition(part.level, part.charging, part.temperature_c, part.thermal_status, now))
        care = decide(known, care, limits, now)
        assert care.hot
