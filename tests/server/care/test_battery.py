"""Every way in which a battery is told, and whatever is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.care import UNTROUBLED, CareLimits, Condition, decide, parse_dumpsys_battery, parse_termux_battery
from tests.server.care import dumps

AT = 50.0


def dumped(text: str) -> Condition:
    return parse_dumpsys_battery(text, AT)


def changed(old: str, new: str) -> Condition:
    assert old in dumps.PLAIN
    return dumped(dumps.PLAIN.replace(old, new))


def termux(**changes: Any) -> Condition:
    told = {**json.loads(dumps.TERMUX), **changes}
    return parse_termux_battery({name: value for name, value in told.items() if value is not None}, AT)


# --- dumpsys battery


def test_the_plain_dump() -> None:
    assert dumped(dumps.PLAIN) == Condition(71.0, True, 31.4, at=AT, overheated=False)


def test_the_first_of_each_key_counts_and_vendors_lines_do_not() -> None:
    """Plugged in, and still losing: that charger does not keep up with the load."""
    assert dumped(dumps.SAMSUNG) == Condition(14.0, False, 40.2, at=AT, overheated=False)


def test_values_that_were_set_by_hand_are_believed() -> None:
    assert dumped(dumps.SET_BY_HAND) == dumped(dumps.PLAIN)


def test_carriage_returns_of_old_shells() -> None:
    assert dumped(dumps.PLAIN.replace("\n", "\r\n")) == dumped(dumps.PLAIN)


def test_a_box_with_other_units() -> None:
    assert dumped(dumps.TELEVISION_BOX).temperature_c == 26.0


def test_a_box_without_a_battery_has_no_level() -> None:
    assert dumped(dumps.NO_BATTERY) == Condition(at=AT)
    assert not dumped(dumps.NO_BATTERY).tells_anything


@pytest.mark.parametrize(
    ("temperature", "celsius"),
    [
        ("-52", -5.2),
        ("431", 43.1),
        ("0", None),  # a sensor that is not there
        ("43100", 43.1),  # thousandths
        ("4310", 43.1),  # hundredths
        ("31.4", 31.4),  # a decimal point: degrees
        ("31,4", 31.4),  # as half the world writes it
        ("1,314", None),
        ("314.0", 31.4),
        ("950", None),  # 95 degrees, or 9.5: neither is a phone's at work
        ("999999", None),
        ("-999", None),
        ("warm", None),
        ("nan", None),
        ("9" * 40, None),
    ],
)
def test_temperatures(temperature: str, celsius: float | None) -> None:
    assert changed("temperature: 314", f"temperature: {temperature}").temperature_c == celsius


@pytest.mark.parametrize(
    ("old", "new", "level"),
    [
        ("scale: 100", "scale: 200", 35.5),
        ("scale: 100", "scale: 0", 71.0),
        ("  scale: 100\n", "", 71.0),
        ("level: 71", "level: 130", None),
        ("level: 71", "level: -1", None),
        ("  level: 71\n", "", None),
    ],
)
def test_levels(old: str, new: str, level: float | None) -> None:
    assert changed(old, new).level == level


@pytest.mark.parametrize(
    ("status", "powered", "charging"),
    [
        ("1", "true", True),
        ("1", "false", False),
        ("2", "false", True),
        ("3", "true", False),
        ("4", "true", True),  # the charger holds it at its limit
        ("Charging", "false", True),
        ("Not charging", "true", True),
        ("Discharging", "true", False),
        ("BATTERY_STATUS_FULL", "false", True),
        ("4", "false", False),
        ("5", "false", True),
        ("17", "true", True),
    ],
)
def test_charging(status: str, powered: str, charging: bool) -> None:
    text = dumps.PLAIN.replace("status: 2", f"status: {status}").replace("USB powered: true", f"USB powered: {powered}")
    assert dumped(text).charging is charging


@pytest.mark.parametrize(
    ("status", "powered", "level"),
    [
        ("1", "true", None),
        ("2", "true", None),
        ("4", "true", None),
        ("5", "true", None),
        ("3", "true", 0.0),
        ("4", "false", 0.0),
    ],
)
def test_a_phone_on_a_supply_in_its_batterys_place_is_not_empty(status: str, powered: str, level: float | None) -> None:
    text = dumps.PLAIN.replace("status: 2", f"status: {status}").replace("USB powered: true", f"USB powered: {powered}")
    condition = dumped(text.replace("level: 71", "level: 0"))
    assert condition.level == level
    assert decide(condition, UNTROUBLED, CareLimits(), AT).low is (level == 0.0)


def test_the_same_of_termux() -> None:
    assert termux(percentage=0, status="NOT_CHARGING").level is None
    assert termux(percentage=0, status="DISCHARGING").level == 0.0
    assert termux(percentage=0, status="UNKNOWN", plugged="UNPLUGGED").level == 0.0


def test_charging_where_nothing_is_said_of_power() -> None:
    assert dumped("  status: 4\n").charging is False
    assert dumped("  status: 1\n").charging is None
    assert dumped("  Dock powered: true\n").charging is True


@pytest.mark.parametrize("level", [39, 40])
def test_what_is_not_charged_at_a_low_level_is_not_held_there_by_a_limit(level: int) -> None:
    """The charger is too weak, or the battery too hot for it."""
    text = dumps.PLAIN.replace("status: 2", "status: 4").replace("level: 71", f"level: {level}")
    assert dumped(text).charging is (level >= 40)
    assert termux(status="NOT_CHARGING", percentage=level).charging is (level >= 40)


@pytest.mark.parametrize(
    ("health", "overheated"),
    [("2", False), ("3", True), ("7", False), ("33", None), ("1", None), ("Overheat", True), ("Good", False)],
)
def test_androids_own_verdict(health: str, overheated: bool | None) -> None:
    assert changed("health: 2", f"health: {health}").overheated is overheated


@pytest.mark.parametrize(
    "text",
    [
        "Permission Denial: can't dump BatteryService from pid=7, uid=2000\n",
        "Can't find service: battery\n",
        "Битва: 5\n  уровень: 71\n  温度: 314\n",
        "\x00\x01level\x02: \ufffd\n",
    ],
)
def test_what_is_no_dump_tells_nothing(text: str) -> None:
    assert dumped(text) == Condition(at=AT)


def test_endless_dumps_are_read_in_bounds() -> None:
    """What stands within the bound counts, however much follows, and a line without an end is none."""
    assert dumped(dumps.PLAIN + "x: 1\n" * 10**6) == dumped(dumps.PLAIN)
    assert dumped("y" * 10**6 + "\n" + dumps.PLAIN) == Condition(at=AT)


# --- termux-battery-status


def test_termux() -> None:
    assert parse_termux_battery(dumps.TERMUX, AT) == Condition(88.0, True, 33.2, at=AT, overheated=False)
    assert parse_termux_battery(dumps.TERMUX.encode(), AT) == termux()


@pytest.mark.parametrize(
    ("changes", "charging"),
    [
        ({"status": "FULL"}, True),
        ({"status": "DISCHARGING"}, False),
        ({"status": "NOT_CHARGING"}, True),
        ({"status": "NOT_CHARGING", "plugged": "UNPLUGGED"}, False),
        ({"status": "UNKNOWN", "plugged": "PLUGGED_DOCK"}, True),
        ({"status": None, "plugged": "UNPLUGGED"}, False),
        ({"status": None, "plugged": None}, None),
        ({"status": None, "plugged": "unplugged"}, False),
        ({"status": None, "plugged": "PLUGGED_BY_MAGIC"}, None),
        ({"status": None, "plugged": 2}, True),
        ({"status": None, "plugged": 0}, False),
        ({"status": 2}, True),
        ({"status": 3}, False),
        ({"status": True, "plugged": None}, None),
    ],
)
def test_termux_charging(changes: dict[str, Any], charging: bool | None) -> None:
    assert termux(**changes).charging is charging


def test_termux_leaves_out_what_it_does_not_know() -> None:
    assert termux(temperature=None).temperature_c is None
    assert termux(percentage=None, level=40, scale=80).level == 50.0
    assert termux(percentage=None, level=None).level is None


@pytest.mark.parametrize("changes", [{"present": False}, dict.fromkeys(json.loads(dumps.TERMUX))])
def test_termux_without_a_battery(changes: dict[str, Any]) -> None:
    assert not termux(**changes).tells_anything


@pytest.mark.parametrize(
    ("health", "overheated"),
    [("OVERHEAT", True), (3, True), ("OVER_VOLTAGE", False), ("COLD", False), ("UNKNOWN", None), (None, None)],
)
def test_termux_overheats(health: object, overheated: bool | None) -> None:
    assert termux(health=health).overheated is overheated


@pytest.mark.parametrize(
    ("temperature", "celsius"),
    [
        (33.2, 33.2),
        (332, 33.2),
        (0.0, None),
        (-3.5, -3.5),
        (9000, None),
        ("33.2", 33.2),
        ("33,2", 33.2),
        ("-3,25", -3.25),
        ("33,200", None),
        ([], None),
    ],
)
def test_termux_temperatures(temperature: object, celsius: float | None) -> None:
    assert termux(temperature=temperature).temperature_c == celsius


def test_newer_fields_of_termux_are_passed_over() -> None:
    assert termux(cycle=212, energy=-9, current_average=-305000, charge_counter=3_312_000, new=[1]) == termux()


def test_a_refusal_of_termux_is_no_status() -> None:
    assert not parse_termux_battery({"API_ERROR": "Please grant the following permission"}, AT).tells_anything


@pytest.mark.parametrize("percentage", [True, "full", [], -3, 1e300, float("nan"), 10**500])
def test_termux_levels_that_are_none(percentage: Any) -> None:
    assert termux(percentage=percentage, level=None).level is None


@pytest.mark.parametrize("said", ["", "null", "[]", "{", b"\xff", "Error: no permission", 7, None, "[" * 5000])
def test_what_is_no_status_tells_nothing(said: object) -> None:
    assert parse_termux_battery(said, AT) == Condition(at=AT)


# --- whatever else

VALUES = st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str), st.just("true"))
KEYS = st.sampled_from(
    ["level", "scale", "status", "health", "present", "temperature", "voltage", "AC powered", "USB powered", "x"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["present", "health", "plugged", "status", "temperature", "percentage", "level", "scale"])


def assert_sane(condition: Condition) -> None:
    assert condition.at == AT
    assert condition.level is None or 0.0 <= condition.level <= 100.0
    assert condition.temperature_c is None or -40.0 <= condition.temperature_c <= 90.0
    assert condition.charging in (None, True, False) and condition.overheated in (None, True, False)
    assert condition.thermal_status is None and not condition.earlier


@given(st.text())
def test_any_text(text: str) -> None:
    assert_sane(dumped(text))
    assert_sane(parse_termux_battery(text, AT))


@given(st.binary(max_size=200))
def test_any_bytes(said: bytes) -> None:
    assert_sane(parse_termux_battery(said, AT))


@given(st.permutations(dumps.SAMSUNG.splitlines()), st.sampled_from(["\n", "\r\n", "\r\r\n"]))
def test_lines_in_any_order_and_with_any_end(lines: list[str], end: str) -> None:
    assert_sane(dumped(end.join(lines)))
    kept = [line for line in lines if "999" not in line and "level: 3" not in line]
    assert dumped(end.join(kept)) == dumped(dumps.SAMSUNG)


@given(st.lists(st.tuples(KEYS, VALUES), max_size=12))
def test_known_keys_with_any_values(pairs: list[tuple[str, str]]) -> None:
    assert_sane(dumped("".join(f"  {key}: {value}\n" for key, value in pairs)))


@given(st.dictionaries(FIELDS, JSON) | JSON)
def test_any_report(said: object) -> None:
    assert_sane(parse_termux_battery(said, AT))
