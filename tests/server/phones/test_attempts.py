"""So many tries for each source, and no more memory than for so many sources."""

from __future__ import annotations

import pytest

from server.errors import TooManyTries
from server.phones.attempts import MOST_SOURCES, Attempts, source_of


def test_a_source_has_so_many_in_a_window() -> None:
    attempts = Attempts(3, 60.0)
    for moment in (0.0, 10.0, 20.0):
        attempts.spend("a", moment)
    with pytest.raises(TooManyTries) as refused:
        attempts.spend("a", 30.0)
    assert refused.value.retry_after == 30.0
    attempts.spend("b", 30.0)
    attempts.spend("a", 60.0)
    with pytest.raises(TooManyTries):
        attempts.check("a", 69.0)


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    attempts = Attempts(1, 60.0)
    attempts.spend("a", 10_000.0)
    attempts.spend("a", 5_000.0)
    with pytest.raises(TooManyTries):
        attempts.spend("a", 5_001.0)


def test_looking_costs_nothing() -> None:
    attempts = Attempts(1, 60.0)
    for _ in range(5):
        attempts.check("a", 0.0)
    attempts.count("a", 0.0)
    with pytest.raises(TooManyTries):
        attempts.check("a", 1.0)


def test_the_table_is_bounded() -> None:
    attempts = Attempts(1, 60.0)
    for number in range(2 * MOST_SOURCES):
        attempts.count(str(number), 0.0)
    assert len(vars(attempts)["_tries"]) == MOST_SOURCES


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.168.1.5", "192.168.1.5"),
        ("::ffff:192.168.1.5", "192.168.1.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%wlan0", "fe80::1%wlan0"),
        ("fd00::2", "fd00::2"),  # all phones of a home are in one such network
        ("", ""),
    ],
)
def test_what_counts_as_one_source(host: str, source: str) -> None:
    assert source_of(host) == source
