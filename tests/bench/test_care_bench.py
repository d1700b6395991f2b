"""The simulated phones behave as published, and the simulation loses no token."""

from __future__ import annotations

import pytest

from bench.care import ANSWER_TOKENS, LOADS, PEAK_ABOVE_HOT_C, VARIED, fleet_of, promised, simulate
from bench.rig.heat import KINDS, Body
from server.care import CareLimits

ROOM_C = 25.0
HOT_C = CareLimits().hot_c


def speeds(name: str, minutes: int) -> list[float]:
    """The speed after each minute of constant load in a room of 25 degrees."""
    body, found = Body.at_rest(KINDS[name], ROOM_C), []
    for _ in range(minutes):
        for _ in range(60):
            body.live(1.0, working=True)
        found.append(body.speed)
    return found


def test_the_published_figures() -> None:
    g3 = speeds("Tensor G3", 30)
    assert g3[0] == 1.0
    assert g3[-1] == pytest.approx(196 / 400, abs=0.02)
    assert set(speeds("Dimensity 900", 30)) == {1.0}
    assert set(speeds("Tensor G1", 91)) == {1.0}
    stopping = speeds("Snapdragon 8 Gen 3", 30)
    assert stopping[0] == 1.0 and 0.0 in stopping


def test_a_phone_that_does_nothing_cools_down_to_its_room() -> None:
    body = Body(KINDS["Snapdragon 8 Gen 3"], ROOM_C, 50.0)
    assert body.live(1.0, working=True) > 0.0
    assert body.stopped and body.thermal_status == 3
    assert body.live(1.0, working=True) == 0.0
    for _ in range(4 * 3600):
        body.live(1.0, working=False)
    assert body.temperature_c == pytest.approx(ROOM_C, abs=0.01)
    assert (body.stopped, body.thermal_status) == (False, 0)


def test_the_status_tells_how_much_is_taken_away() -> None:
    kind = KINDS["Tensor G3"]
    statuses = [Body(kind, ROOM_C, celsius).thermal_status for celsius in (40.0, 41.5, 45.0)]
    assert statuses == [0, 2, 3]


def test_what_is_assumed_can_be_varied() -> None:
    """Everything but its heat and haste stays as published."""
    peaks = {}
    for name, assumed in VARIED.items():
        body = Body.at_rest(KINDS["Tensor G1"], ROOM_C, assumed)
        for _ in range(600):
            body.live(1.0, working=True)
        peaks[name] = body.temperature_c
    usual = Body.at_rest(KINDS["Tensor G1"], ROOM_C)
    for _ in range(600):
        usual.live(1.0, working=True)
    assert peaks["a quarter less heat"] < usual.temperature_c < peaks["a quarter more heat"]
    assert peaks["warm in twice the time"] < usual.temperature_c < peaks["warm in half the time"]


def test_a_run_is_the_same_each_time_and_care_keeps_phones_cool() -> None:
    hours, share = 0.75, LOADS["45 %"]
    cared = simulate(hours, share, care=True)
    assert cared == simulate(hours, share, care=True)
    careless = simulate(hours, share, care=False)
    assert cared["peak_c"] <= HOT_C + PEAK_ABOVE_HOT_C < careless["peak_c"]
    assert cared["hot_phones"] < careless["hot_phones"] / 4
    wanted = fleet_of(20, care=True).full_speed * 3600 * share
    for figures in (cared, careless):
        assert figures["tokens_per_hour"] == pytest.approx(wanted, rel=0.05)
        assert figures["median_s"] >= ANSWER_TOKENS / 27.3


def test_what_was_promised_is_compared() -> None:
    ways = {"without": {"tokens_per_hour": 100.0}, "with": {"tokens_per_hour": 80.0, "peak_c": 44.0}}
    targets = promised({"45 %": ways, "all they can": ways})
    assert [target.reached for target in targets] == [True, False, True]
