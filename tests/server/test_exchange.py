"""Requests and events as values."""

from __future__ import annotations

import pytest

from server.exchange import Done, Durations, Timings, Usage
from tests.server.scripted_nodes import chat


@pytest.mark.parametrize(
    ("options", "deterministic"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.1}, False),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1}, True),
    ],
)
def test_an_answer_repeats_at_temperature_0_or_with_a_seed(options: dict[str, float], deterministic: bool) -> None:
    assert chat("hi", options=options).deterministic is deterministic


def test_tokens_per_second_come_from_what_the_nodes_say() -> None:
    done = Done("stop", "m", "n", Usage(3, 20), Durations(generation=4_000_000_000), Timings(0, 0, 0), 1, ())
    assert done.tokens_per_second == 5.0
    assert Done("stop", "m", "n", Usage(3, 20), Durations(), Timings(0, 0, 0), 1, ()).tokens_per_second is None
