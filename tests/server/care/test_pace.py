"""Learned speed over a window of time."""

from __future__ import annotations

import pytest

from server.care.pace import MOST_ANSWERS, WINDOW_SECONDS, Pace


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
