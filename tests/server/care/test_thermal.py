"""What the thermal service prints, whole and in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.care import THERMAL_WORDS, parse_dumpsys_thermal
from tests.server.care import dumps


def status(text: str) -> int | None:
    condition = parse_dumpsys_thermal(text, 7.0)
    assert condition.at == 7.0 and not condition.tells_battery
    return condition.thermal_status


@pytest.mark.parametrize("number", range(len(THERMAL_WORDS)))
def test_the_status_line(number: int) -> None:
    assert status(dumps.THERMAL.replace("Thermal Status: 2", f"Thermal Status: {number}")) == number


@pytest.mark.parametrize("word", ["-1", "7", "99999", "hot", ""])
def test_a_status_off_the_scale_is_none(word: str) -> None:
    text = f"Thermal Status: {word}\nHAL Ready: true\n"
    assert status(text) is None


def test_without_the_line_the_worst_sensor_counts() -> None:
    text = dumps.THERMAL.replace("Thermal Status: 2\n", "")
    assert status(text) == 2
    assert status(text.replace("mName=AP, mStatus=0", "mName=AP, mStatus=3")) == 3
    assert status("Temperature{mValue=25.6, mType=0, mName=AP, mStatus=0}") == 0


def test_a_status_of_nobody() -> None:
    """Without the vendor's half, 0 is what the field began with; what somebody has set is meant."""
    assert status(dumps.WITHOUT_HAL) is None
    assert status(dumps.WITHOUT_HAL.replace("Thermal Status: 0", "Thermal Status: 3")) == 3
    assert status(dumps.WITHOUT_HAL.replace("Override: false", "Override: true")) == 0


@pytest.mark.parametrize("text", ["", "Can't find service: thermalservice\n", "Temperature{mStatus=", "\x00"])
def test_nothing_told(text: str) -> None:
    assert status(text) is None


def test_carriage_returns_of_old_shells() -> None:
    assert status(dumps.THERMAL.replace("\n", "\r\n")) == 2


@given(st.text() | st.lists(st.sampled_from(dumps.THERMAL.splitlines()) | st.text(max_size=30)).map("\n".join))
def test_any_text(text: str) -> None:
    assert status(text) in (None, *range(len(THERMAL_WORDS)))
