"""Answers that go on by their tokens: when that is a way, and what the gateway keeps for it."""

from __future__ import annotations

from typing import Any

import pytest

from server.continuation import Told, ways
from server.exchange import AskRequest, Begun, Token
from tests.server.scripted_nodes import chat, node_of, report_of

OURS = node_of("a", report_of(continues_assistant=True))
RELAY = node_of("r", report_of(continues_assistant=True, renders=True), kind="relay")


PROMPT: AskRequest = chat(operation="generate", messages=(), prompt="hi", fields={"context": [1, 2]})


def told_by_ids(*tokens: Token) -> Told:
    result = Told()
    for token in tokens:
        result.add(token)
    return result


@pytest.mark.parametrize("fields", [{}, {"format": "json"}, {"logprobs": True}, {"suffix": "}"}])
def test_where_the_tokens_are_known_they_come_first(fields: dict[str, Any]) -> None:
    """Also where text could not be cut and glued: the node goes on as if it had written the answer itself."""
    known = told_by_ids(Token("so", ids=(1, 2)), Token(" far", ids=()))
    assert ways(chat("hi", fields=fields), RELAY, known)[0] == "exact"
    assert ways(PROMPT, RELAY, known) == ("exact",)
    assert "exact" not in ways(chat("hi", fields=fields), OURS, known), "only kind relay can be asked so"


def test_one_token_that_nobody_named_ends_it() -> None:
    mixed = told_by_ids(Token("so", ids=(1, 2)), Token(" far"))
    assert mixed.begun is None and mixed.ids is None
    assert ways(chat("hi"), RELAY, mixed) == ("chat",)
    mixed.add(Token(" more", ids=(3,)))
    assert mixed.begun is None, "what is unknown stays unknown"
    assert ways(chat("hi"), RELAY, told_by_ids(Token("", tool_calls=({},), ids=(1,)))) == ()


def test_tokens_are_counted_by_their_ids() -> None:
    """Several words in one piece may be one token, and text may come without any."""
    result = Told()
    assert result.add(Token("one two three", tokens=1, ids=(7,))) == 1
    assert result.add(Token(" and the rest", tokens=0, ids=())) == 0
    assert result.add(Token("", tokens=2, ids=(8, 9))) == 2
    assert (result.tokens, result.begun) == (3, Begun((7, 8, 9), len("one two three and the rest")))
    assert told_by_ids(Token("é", ids=(1,))).begun == Begun((1,), 2), "bytes, not characters"


def test_what_was_not_heard_was_not_told() -> None:
    result = told_by_ids(Token("", tokens=1, ids=(7,)))
    assert not result.anything
    result.forget_unheard()
    assert (result.tokens, result.begun) == (0, Begun((), 0))
