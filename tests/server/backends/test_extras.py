"""Tool calls and log-probabilities as nodes tell them: ours to pass on, or none."""

from __future__ import annotations

from typing import Any

import pytest

from server.backends.extras import logprobs, tool_calls


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [None, [], ()])
def test_none_is_none(value: Any):
    assert (tool_calls(value), logprobs(value)) == ((), ())


def test_what_is_right_comes_as_it_is():
    calls = [{"id": "1", "function": {"name": "f", "arguments": {"x": [1]}}}, {"function": {"arguments": "{}"}}]
    tokens = [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b"}]}, {"token": "c", "top_logprobs": None}]
    assert (tool_calls(calls), logprobs(tokens)) == (tuple(calls), tuple(tokens))


@pytest.mark.parametrize(
    "value",
    [
        {"function": {}},
        ["f"],
        [{}],
        [{"function": "f"}],
        [{"function": {"name": 5}}],
        [{"function": {"name": "f", "arguments": [1]}}],
        [{"function": {"name": "f", "arguments": {"x": nested(300)}}}],
    ],
)
def test_calls_that_are_none(value: Any):
    with pytest.raises(TypeError):
        tool_calls(value)


@pytest.mark.parametrize(
    "value",
    [
        "a",
        [1],
        [{"token": ["a"]}],
        [{"token": "a", "top_logprobs": {"b": 1}}],
        [{"token": "a", "top_logprobs": [{"token": ["b"]}]}],
        [{"token": "a", "bytes": nested(300)}],
    ],
)
def test_logprobs_that_are_none(value: Any):
    with pytest.raises(TypeError):
        logprobs(value)
