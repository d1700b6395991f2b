"""What the thermal service prints, whole and in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.care import THERMAL_WORDS, Condition, parse_dumpsys_thermal, parse_thermal_report
from tests.server.care import dumps


def status(text: str) -> int | None:
    condition = parse_dumpsys_thermal(text, 7.0)
    assert condition == Condition(thermal_status=condition.thermal_status, at=7.0)
    return condition.thermal_status


@pytest.mark.parametrize("number", range(len(THERMAL_WORDS)))
def test_the_status_line(number: int) -> None:
    assert status(dumps.THERMAL.replace("Thermal Status: 2", f"Thermal Status: {number}")) == number


@pytest.mark.parametrize("word", ["-1", "7", "99999", "hot", ""])
def test_a_status_off_the_scale_is_none(word: str) -> None:
    text = f"Thermal Status: {word}\nHAL Ready: true\n"
    assert status(text) is None


def test_without_the_line_the_worst_sensor_of_the_skin_counts() -> None:
    """As Android finds it: a processor's own verdict is none on the phone."""
    text = dumps.THERMAL.replace("Thermal Status: 2\n", "")
    assert status(text) == 2
    assert status(text.replace("mName=AP, mStatus=0", "mName=AP, mStatus=5")) == 2
    assert status("Temperature{mValue=25.6, mType=0, mName=AP, mStatus=0}") == 0
    assert status("Temperature{mValue=25.6, mType=0, mName=AP, mStatus=3}\nTemperature{mStatus=4}") == 4


def test_without_the_line_what_is_measured_now_counts_before_what_was_heard_of() -> None:
    text = dumps.THERMAL.replace("Thermal Status: 2\n", "")
    cooled = text.replace("mValue=39.0, mType=3, mName=skin, mStatus=2", "mValue=33.0, mType=3, mName=skin, mStatus=0")
    assert status(cooled) == 0
    nothing_now = text[: text.index("Current temperatures from HAL:\n") + 32]
    assert status(nothing_now) == 2


def test_a_status_of_nobody() -> None:
    """Without the vendor's half, 0 is what the field began with; what somebody has set is meant."""
    assert status(dumps.WITHOUT_HAL) is None
    assert status(dumps.WITHOUT_HAL.replace("Thermal Status: 0", "Thermal Status: 3")) == 3
    assert status(dumps.WITHOUT_HAL.replace("Override: false", "Override: true")) == 0


NOTHING = [
    "",
    "Can't find service: thermalservice\n",
    "Permission Denial: can't dump thermalservice from pid=7, uid=2000 due to missing android.permission.DUMP\n",
    "Temperature{mStatus=",
    "Thermal Status:\nTemperature{mStatus=77}",
    "Estado térmico: 3\n",
    "\x00",
]


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_told(text: str) -> None:
    assert status(text) is None


def test_carriage_returns_of_old_shells() -> None:
    for end in ("\r\n", "\r\r\n"):
        assert status(dumps.THERMAL.replace("Thermal Status: 2", "Thermal Status: 4").replace("\n", end)) == 4
        assert status(dumps.WITHOUT_HAL.replace("\n", end)) is None


def test_endless_dumps_are_read_in_bounds() -> None:
    assert status(dumps.THERMAL + "Temperature{mType=3 " * 10**5) == 2
    assert status("x" * 10**6 + "\nThermal Status: 3\n") is None


# --- what a phone reports by itself


@pytest.mark.parametrize(
    ("told", "number"),
    [(3, 3), (0, 0), ("severe", 3), ("LIGHT", 1), (7, None), (-1, None), ("hot", None), (True, None), (2.0, None)],
)
def test_a_reported_status(told: object, number: int | None) -> None:
    assert parse_thermal_report({"status": told}, 7.0) == Condition(thermal_status=number, at=7.0)


@pytest.mark.parametrize(
    ("zones", "celsius"),
    [
        ({"battery": 36000}, 36.0),
        ({"mtktsbattery": 41250, "cpu-0-0": 88000}, 41.25),
        ({"batt_therm": "38500", "bms": 39000}, 39.0),  # the warmer of two
        ({"Battery": 36}, 36.0),  # kernels that tell whole degrees
        ({"battery": 365}, 36.5),
        ({"battery": 0}, None),
        ({"battery": -273000}, None),
        ({"battery": 2_147_483_647}, None),
        ({"cpu-0-0": 88000}, None),
        ({"battery_cycle": 450, "batt_soc": 80, "battery_id": 60, "battery": 36000}, 36.0),  # the first three no warmth
        ({"battery-level": 60}, None),
        ({"battery": {"temp": 3}}, None),
        (["battery", 36000], None),
        (None, None),
    ],
)
def test_zones(zones: object, celsius: float | None) -> None:
    told = {"zones": zones}
    assert parse_thermal_report(told, 7.0) == Condition(temperature_c=celsius, at=7.0)


def test_more_zones_than_any_phone_has() -> None:
    zones = {f"zone {number}": 1 for number in range(5000)} | {"battery": 36000}
    assert not parse_thermal_report({"zones": zones}, 7.0).tells_anything


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["battery", "bms", "x"]), inner),
    max_leaves=5,
)


@given(ANY | st.fixed_dictionaries({"status": ANY, "zones": ANY}))
def test_any_report(said: object) -> None:
    condition = parse_thermal_report(said, 7.0)
    assert condition.thermal_status in (None, *range(len(THERMAL_WORDS)))
    assert condition.temperature_c is None or -40.0 <= condition.temperature_c <= 90.0
    assert (condition.level, condition.charging, condition.overheated) == (None, None, None)


@given(st.text() | st.lists(st.sampled_from(dumps.THERMAL.splitlines()) | st.text(max_size=30)).map("\n".join))
def test_any_text(text: str) -> None:
    assert status(text) in (None, *range(len(THERMAL_WORDS)))
