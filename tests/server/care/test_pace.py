"""Learned speed over a window of time."""

from __future__ import annotations

import pytest

from server.care.pace import FORGOTTEN_SECONDS, MOST_ANSWERS, WINDOW_SECONDS, Pace


def test_long_answers_count_for_more() -> None:
    pace = Pace()
    assert pace.learn(10, 1.0, 0.0) == 10.0
    assert pace.learn(10, 4.0, 5.0) == 4.0


def test_a_phone_that_throttles_shows_within_the_window() -> None:
    pace, speed = Pace(), 0.0
    for minute in range(10):
        speed = pace.learn(100, 10.0 if minute < 3 else 20.0, minute * 60.0)
    assert speed == 5.0


def test_what_is_older_counts_no_more() -> None:
    pace = Pace()
    pace.learn(10, 10.0, 0.0)
    assert pace.learn(10, 1.0, WINDOW_SECONDS) == pytest.approx(20 / 11)
    assert pace.learn(10, 1.0, WINDOW_SECONDS + 0.1) == 10.0


def test_a_busy_node_is_judged_by_its_last_answers() -> None:
    pace, speed = Pace(), 0.0
    for number in range(3 * MOST_ANSWERS):
        speed = pace.learn(10, 10.0 if number < MOST_ANSWERS else 1.0, number / 100)
    assert speed == 10.0
    assert len(pace.answers) == MOST_ANSWERS


def test_from_ten_to_three_tokens_a_second_within_the_window() -> None:
    """What is slow takes longer, and so counts sooner: at half a window half of the way is told."""
    pace, now, speeds = Pace(), 0.0, dict[float, float]()
    while now < 900.0:
        seconds = 128 / (10.0 if now < 300.0 else 3.0)
        now += seconds
        speeds[now] = pace.learn(128, seconds, now)
    at = sorted(speeds)
    assert speeds[max(moment for moment in at if moment < 330.0)] > 9.0
    assert speeds[min(moment for moment in at if moment >= 450.0)] < 6.5
    assert speeds[min(moment for moment in at if moment >= 650.0)] == pytest.approx(3.0)


def test_what_was_learned_long_ago_is_forgotten() -> None:
    pace = Pace()
    assert not pace.is_forgotten(1e9), "nothing was learned"
    pace.learn(10, 1.0, 100.0)
    assert not pace.is_forgotten(99.9 + FORGOTTEN_SECONDS)
    assert pace.is_forgotten(100.0 + FORGOTTEN_SECONDS)
    assert pace.learn(10, 10.0, 100.0 + FORGOTTEN_SECONDS) == 1.0
    assert not pace.is_forgotten(101.0 + FORGOTTEN_SECONDS)


def test_an_absurd_answer_leaves_no_trace_when_it_goes() -> None:
    """Sums of fractions would have lost all that is small beside it."""
    pace = Pace()
    pace.learn(10, 1e30, 0.0)
    assert pace.learn(10, 1.0, WINDOW_SECONDS) < 1e-6
    assert pace.learn(10, 1.0, WINDOW_SECONDS + 0.1) == 10.0
    assert pace.learn(10, 1e-30, WINDOW_SECONDS + 0.2) == pytest.approx(15.0)
