"""Readings of several sources become one condition, and each part grows old by itself."""

from __future__ import annotations

from server.care import Condition, renewed

BATTERY = Condition(50.0, True, 35.0, at=10.0)
THERMAL = Condition(thermal_status=3, at=20.0)


def test_the_first_reading_is_all_that_is_known() -> None:
    assert renewed(None, THERMAL) is THERMAL


def test_heat_and_battery_are_told_by_turns() -> None:
    both = renewed(BATTERY, THERMAL)
    assert both == Condition(50.0, True, 35.0, 3, at=10.0, thermal_at=20.0)
    assert renewed(THERMAL, BATTERY) == both
    later = renewed(both, Condition(49.0, at=40.0))
    assert later == Condition(49.0, None, None, 3, at=40.0, thermal_at=20.0)
    assert (later.heard_at, both.heard_at, BATTERY.heard_at) == (40.0, 20.0, 10.0)


def test_each_part_grows_old_by_itself() -> None:
    both = renewed(BATTERY, THERMAL)
    assert both.believed(70.0, 60.0) is both
    only_heat = both.believed(75.0, 60.0)
    assert (only_heat.tells_battery, only_heat.thermal_status) == (False, 3)
    assert not both.believed(81.0, 60.0).tells_anything
    later = renewed(both, Condition(49.0, at=60.0))
    assert (later.believed(81.0, 60.0).level, later.believed(81.0, 60.0).thermal_status) == (49.0, None)


def test_one_moment_for_both() -> None:
    whole = Condition(50.0, True, 35.0, 3, at=10.0)
    assert whole.believed(70.0, 60.0) is whole
    assert not whole.believed(70.5, 60.0).tells_anything


def test_words() -> None:
    assert (THERMAL.thermal_word, BATTERY.thermal_word) == ("severe", None)
    assert not Condition(at=5.0).tells_anything
    assert Condition(overheated=True).tells_battery
