"""Everything that becomes a prompt counts, and on the high side."""

from __future__ import annotations

from typing import Any

import pytest

from server.exchange import AskRequest, CallerId, RequestId
from server.workload import IMAGE_TOKENS, reading_tokens, text_tokens, told_tokens
from tests.server.scripted_nodes import chat


def request(**values: Any) -> AskRequest:
    return AskRequest(RequestId("r"), CallerId("c"), **{"operation": "generate", **values})


@pytest.mark.parametrize(
    ("given", "least"),
    [
        (chat("x" * 3000), 1000),
        (chat("hi", fields={"tools": [{"type": "function", "description": "d" * 3000}]}), 1000),
        (chat("hi", fields={"system": "s" * 3000}), 1000),
        (request(prompt="hi", fields={"system": "s" * 3000}), 1000),
        (request(prompt="hi", fields={"context": [1] * 500}), 500),
        (request(prompt="p" * 300, fields={"suffix": "s" * 3000}), 1100),
        (request(prompt="hi", fields={"images": ["a", "b"]}), 2 * IMAGE_TOKENS),
        (request(operation="embed", fields={"input": ["t" * 600] * 50}), 10_000),
        (request(operation="embed", fields={"input": "t" * 600}), 200),
        (request(operation="chat", messages=({"role": "user", "content": "", "images": ["a"]},)), IMAGE_TOKENS),
    ],
)
def test_what_is_read_counts(given: AskRequest, least: int) -> None:
    assert reading_tokens(given) >= least


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("word " * 100, 100, 200), ("中" * 100, 100, 250), ("🙂" * 100, 200, 350), ("źdźbło " * 10, 20, 60), ("", 0, 0)],
)
def test_other_scripts_have_more_tokens_a_character(text: str, least: int, most: int) -> None:
    assert least <= text_tokens(text) <= most


@pytest.mark.parametrize(
    ("piece", "counted", "tokens"),
    [
        (" word", 1, 1),
        ("\n", 1, 1),
        ("", 1, 1),
        (" three words held", 1, 3),
        ("🙂", 1, 1),
        (" 🙂🙂", 1, 1),
        (" three words held", 5, 5),
    ],
)
def test_a_piece_that_was_held_back_counts_its_words(piece: str, counted: int, tokens: int) -> None:
    """`num_predict` is summed over the parts: a node joins tokens while a stop string may be beginning."""
    assert told_tokens(piece, counted) == tokens
