"""The breaker's table: every state with every event, and the rules about rests."""

from __future__ import annotations

import pytest

from server.breaker import (
    CLOSED,
    Breaker,
    BreakerLimits,
    BreakerState,
    on_failure,
    on_no_verdict,
    on_renewed,
    on_sent,
    on_success,
)

NOW = 1000.0
TWO_FAILURES = Breaker(failures=2)
RESTING = Breaker(BreakerState.OPEN, 3, 1, NOW + 30)
RESTED = Breaker(BreakerState.OPEN, 3, 1, NOW)
TRIAL = Breaker(BreakerState.HALF_OPEN, 3, 1)
SHORT = BreakerLimits(failures_to_open=2, first_rest_seconds=1.0, longest_rest_seconds=3.0)

TABLE = [
    (CLOSED, "sent", CLOSED),
    (CLOSED, "success", CLOSED),
    (CLOSED, "failure", Breaker(failures=1)),
    (CLOSED, "no verdict", CLOSED),
    (CLOSED, "renewed", CLOSED),
    (TWO_FAILURES, "sent", TWO_FAILURES),
    (TWO_FAILURES, "success", CLOSED),
    (TWO_FAILURES, "failure", RESTING),
    (TWO_FAILURES, "no verdict", TWO_FAILURES),
    (TWO_FAILURES, "renewed", CLOSED),
    (RESTING, "sent", RESTING),
    (RESTING, "success", RESTING),
    (RESTING, "failure", RESTING),
    (RESTING, "no verdict", RESTING),
    (RESTING, "renewed", CLOSED),
    (RESTED, "sent", TRIAL),
    (RESTED, "success", RESTED),
    (RESTED, "failure", RESTED),
    (RESTED, "no verdict", RESTED),
    (RESTED, "renewed", CLOSED),
    (TRIAL, "sent", TRIAL),
    (TRIAL, "success", CLOSED),
    (TRIAL, "failure", Breaker(BreakerState.OPEN, 4, 2, NOW + 60)),
    (TRIAL, "no verdict", RESTED),
    (TRIAL, "renewed", CLOSED),
]


@pytest.mark.parametrize(("breaker", "event", "expected"), TABLE)
def test_every_state_with_every_event(breaker: Breaker, event: str, expected: Breaker) -> None:
    outcome = {
        "sent": lambda: on_sent(breaker, NOW),
        "success": lambda: on_success(breaker),
        "failure": lambda: on_failure(breaker, NOW),
        "no verdict": lambda: on_no_verdict(breaker, NOW),
        "renewed": lambda: on_renewed(breaker),
    }[event]()
    assert outcome == expected


@pytest.mark.parametrize(
    ("breaker", "admits"), [(CLOSED, True), (TWO_FAILURES, True), (RESTING, False), (RESTED, True), (TRIAL, False)]
)
def test_who_admits_a_request(breaker: Breaker, admits: bool) -> None:
    assert breaker.admits(NOW) is admits


def test_three_request_failures_in_a_row_open_it_for_30_seconds() -> None:
    """Three request failures in a row open the breaker for 30 s; a success between them starts the count anew."""
    breaker = CLOSED
    for _ in range(2):
        breaker = on_failure(breaker, NOW)
    breaker = on_failure(on_failure(on_success(breaker), NOW), NOW)
    assert breaker.admits(NOW)
    breaker = on_failure(breaker, NOW)
    assert not breaker.admits(NOW + 29.9)
    assert breaker.admits(NOW + 30)


def test_after_the_rest_exactly_one_request_tries() -> None:
    breaker = on_sent(RESTED, NOW)
    assert not breaker.admits(NOW)
    assert not breaker.admits(NOW + 10_000)


def test_repeated_opening_doubles_the_rest_up_to_five_minutes() -> None:
    rests, now, breaker = [], 0.0, CLOSED
    for _ in range(3):
        breaker = on_failure(breaker, now)
    for _ in range(6):
        rests.append(breaker.open_until - now)
        now = breaker.open_until
        breaker = on_failure(on_sent(breaker, now), now)
    assert rests == [30, 60, 120, 240, 300, 300]


def test_a_node_that_fails_for_ever_rests_five_minutes_for_ever() -> None:
    """Thousands of openings (a dead phone in a busy week) overflow nothing."""
    breaker = on_failure(Breaker(BreakerState.HALF_OPEN, 9, 100_000), NOW)
    assert breaker.open_until == NOW + 300


def test_a_success_forgets_earlier_openings() -> None:
    breaker = on_success(TRIAL)
    for _ in range(3):
        breaker = on_failure(breaker, NOW)
    assert breaker.open_until == NOW + 30


def test_the_limits_are_settable() -> None:
    breaker = on_failure(on_failure(CLOSED, NOW, SHORT), NOW, SHORT)
    assert breaker.open_until == NOW + 1
    for rest in (2, 3, 3):
        breaker = on_failure(on_sent(breaker, breaker.open_until), NOW, SHORT)
        assert breaker.open_until == NOW + rest
