"""Numbers from nodes: what is taken, and what must never reach the gateway's own sums."""

from __future__ import annotations

import pytest

from server.backends.figures import (
    MOST_MILLISECONDS,
    MOST_NANOSECONDS,
    MOST_TOKENS,
    figure,
    nanoseconds,
    tokens,
    vectors,
)


def test_what_is_told_and_what_is_left_out():
    record = {"count": 7, "spent": 12_000_000_000, "rounded": 3.0, "none": None}
    assert (tokens(record, "count"), nanoseconds(record, "spent"), tokens(record, "rounded")) == (7, 12_000_000_000, 3)
    assert tokens(record, "none") == tokens(record, "missing") == 0
    assert figure({"prompt_ms": 2.5}, "prompt_ms", MOST_MILLISECONDS) == 2.5
    assert tokens({"n": MOST_TOKENS}, "n") == MOST_TOKENS


@pytest.mark.parametrize("value", ["many", "7", True, [1], {"a": 1}, -1, -0.5, 1e308, float("nan"), float("inf")])
def test_what_is_no_count_is_named(value: object):
    for take in (tokens, nanoseconds):
        with pytest.raises(ValueError, match="eval_count is"):
            take({"eval_count": value}, "eval_count")


def test_a_count_beyond_all_reason_is_none():
    with pytest.raises(ValueError, match="n is"):
        tokens({"n": MOST_TOKENS + 1}, "n")
    with pytest.raises(ValueError, match="n is"):
        nanoseconds({"n": MOST_NANOSECONDS + 1}, "n")


def test_vectors_are_lists_of_numbers():
    assert vectors([[1, 2.5], []]) == [[1, 2.5], []]


@pytest.mark.parametrize("value", [None, 5, "x", {"a": [1]}, [5], ["ab"], [[1, "2"]], [[1, None]], [[[1]]]])
def test_what_are_no_vectors(value: object):
    with pytest.raises(TypeError):
        vectors(value)
