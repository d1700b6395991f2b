"""Silence is judged by what the node has to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.patience import CAUTIOUS_PROMPT_SPEED, CAUTIOUS_SPEED, PatienceLimits, Work, patience_for

LIMITS = PatienceLimits()
WORK = Work(unread_tokens=200, prompt_tokens_per_second=20.0, tokens_per_second=8.0, must_load=False)


def test_the_first_token() -> None:
    """The limit for the first token = 3 x unread tokens / its prompt speed + 5 s."""
    assert patience_for(WORK, LIMITS).first_token == 3 * 200 / 20 + 5


def test_between_tokens() -> None:
    """Between tokens 3 x its usual pace + 5 s."""
    assert patience_for(WORK, LIMITS).between_tokens == 3 / 8 + 5


def test_a_model_to_load_gets_an_allowance() -> None:
    """Plus an allowance for loading while `/api/ps` lacks the model."""
    waits = patience_for(replace(WORK, must_load=True), LIMITS)
    assert waits.first_token == 3 * 200 / 20 + 5 + LIMITS.load_allowance_seconds
    assert waits.between_tokens == patience_for(WORK, LIMITS).between_tokens


@pytest.mark.parametrize("unknown", [None, 0.0])
def test_a_node_that_has_shown_no_speed_is_taken_for_a_slow_one(unknown: float | None) -> None:
    work = replace(WORK, prompt_tokens_per_second=unknown, tokens_per_second=unknown)
    waits = patience_for(work, LIMITS)
    assert waits.first_token == 3 * 200 / CAUTIOUS_PROMPT_SPEED + 5
    assert waits.between_tokens == 3 / CAUTIOUS_SPEED + 5


def test_requests_that_share_a_node_wait_for_each_other() -> None:
    waits = patience_for(replace(WORK, shared_by=4), LIMITS)
    assert (waits.first_token, waits.between_tokens) == (4 * 30 + 5, 4 * 3 / 8 + 5)


def test_everything_is_settable() -> None:
    """All settable, with a hard ceiling."""
    limits = PatienceLimits(1.0, 2.0, 3.0, 4.0, ceiling_seconds=1000.0, total_seconds=7.0, factor=10.0)
    waits = patience_for(replace(WORK, must_load=True), limits)
    assert (waits.connect, waits.total) == (1.0, 7.0)
    assert waits.first_token == 10 * 200 / 20 + 2 + 4
    assert waits.between_tokens == 10 / 8 + 3


@given(
    unread=st.integers(0, 10**9),
    prompt_speed=st.none() | st.floats(0, 1e6),
    speed=st.none() | st.floats(0, 1e6),
    must_load=st.booleans(),
    shared=st.integers(1, 1000),
)
def test_the_ceiling_is_hard(
    unread: int, prompt_speed: float | None, speed: float | None, must_load: bool, shared: int
) -> None:
    """With a hard ceiling; and nobody gets less than the floor."""
    waits = patience_for(Work(unread, prompt_speed, speed, must_load, shared), LIMITS)
    assert LIMITS.first_token_floor_seconds <= waits.first_token <= LIMITS.ceiling_seconds
    assert LIMITS.between_tokens_floor_seconds <= waits.between_tokens <= LIMITS.ceiling_seconds
