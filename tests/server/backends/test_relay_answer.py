"""What a relay node says, as events and errors."""

from __future__ import annotations

import array
from dataclasses import fields

import pytest

from server.backends.figures import MOST_NANOSECONDS
from server.backends.relay_answer import (
    LEAST_LOGPROB,
    MAX_RETRY_AFTER_SECONDS,
    done_of,
    embedding_of,
    error_of,
    logprob_records,
    refusal_of,
    token_of,
    translated,
)
from server.errors import NodeBroken, NodeBusy, NodeError, NodeIncapable, NodeRefused, NodeUnreachable
from server.exchange import Durations, Embedding, NodeDone, Token, Usage
from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, TransportError, WrongToken
from wire.errors import BadPayload, OutOfBounds
from wire.messages_session import ErrorCode
from wire.messages_work import Done, FinishReason, Logprob, TokenLogprob, Tokens, Vectors


@pytest.mark.parametrize(
    ("error", "begun", "kind", "words"),
    [
        (ConnectFailed("a:1", "no route"), False, NodeUnreachable, "cannot connect to a:1: no route"),
        (ConnectionLost("reset"), False, NodeUnreachable, "before it answered"),
        (ConnectionLost("reset"), True, NodeBroken, "cut its answer short"),
        (ProtocolBroken(BadPayload("x")), True, NodeBroken, "BadPayload"),
        (ProtocolBroken(BadPayload("x")), False, NodeBroken, "BadPayload"),
        (WrongToken("wrong"), False, NodeBroken, "refuses the gateway"),
        (Refused(ErrorCode.GENERATION_FAILED, "nan"), True, NodeBroken, "a:1 failed: nan"),
        (Refused(ErrorCode.CANCELLED), True, NodeBroken, "CANCELLED without a word"),
        (Refused(ErrorCode.DEADLINE_EXCEEDED, "late"), True, NodeBroken, "late"),
    ],
)
def test_who_is_to_blame(error: TransportError, begun: bool, kind: type[NodeError], words: str):
    found = error_of("a:1", error, begun=begun)
    assert type(found) is kind and words in found.message and found.strike


def test_every_code_has_its_reaction():
    kinds = {code: type(refusal_of("a:1", Refused(code, "text"))) for code in ErrorCode}
    assert {code for code, kind in kinds.items() if kind is NodeBusy} == {
        ErrorCode.BUSY, ErrorCode.STOPPING, ErrorCode.NO_ROOM,
    }  # fmt: skip
    assert {code for code, kind in kinds.items() if kind is NodeIncapable} == {ErrorCode.UNSUPPORTED}
    assert {code for code, kind in kinds.items() if kind is NodeRefused} == {
        ErrorCode.BAD_REQUEST, ErrorCode.CONTEXT_EXCEEDED, ErrorCode.MODEL_NOT_FOUND, ErrorCode.UNKNOWN_HANDLE,
        ErrorCode.DIGEST_MISMATCH, ErrorCode.STORE_REFUSED,
    }  # fmt: skip


@pytest.mark.parametrize(("told", "status"), [(409, 409), (None, 400), (200, 400), ("409", 400), (500, 400)])
def test_a_status_that_the_node_tells(told: object, status: int):
    details = () if told is None else (("status", told),)
    error = refusal_of("a:1", Refused(ErrorCode.BAD_REQUEST, "in use", None, details))  # type: ignore[arg-type]
    assert isinstance(error, NodeRefused) and error.status == status


def test_a_node_cannot_ask_to_be_left_alone_for_ever():
    error = refusal_of("a:1", Refused(ErrorCode.BUSY, "full", 0xFFFFFFFF))
    assert isinstance(error, NodeBusy) and error.retry_after_seconds == MAX_RETRY_AFTER_SECONDS


def test_what_goes_wrong_inside_is_translated_and_the_rest_let_through():
    with pytest.raises(NodeUnreachable), translated("a:1"):
        raise ConnectionLost("reset")
    with pytest.raises(NodeIncapable), translated("a:1"):
        raise OutOfBounds("too long")
    with pytest.raises(KeyError), translated("a:1"):
        raise KeyError("ours")


def test_tokens_may_be_ahead_of_their_text_or_behind():
    assert token_of(Tokens(0, 0, "", (1, 2))) == Token("", tokens=2, ids=(1, 2))
    assert token_of(Tokens(0, 0, "rest", ())) == Token("rest", tokens=0, ids=())


def test_a_token_is_made_whole_without_its_class():
    entry = TokenLogprob(Logprob(5, -0.5, "a"))
    assert {field.name for field in fields(Token)} == {*Token.__slots__}
    for tokens in (Tokens(0, 0, "a", (5,)), Tokens(0, 0, "a", (5,), 0, (entry,)), Tokens(7, 9, "", ())):
        made = token_of(tokens)
        assert made == Token(tokens.text, "", (), logprob_records(tokens.logprobs), len(tokens.ids), tokens.ids)
        assert repr(made) and not made.thinking and not made.tool_calls


def test_the_last_word():
    done = Done(3, FinishReason.LENGTH, 10, 5, 100, 1 << 60, context=(1, 2), load_ns=7)
    counts, times = Usage(10, 5), Durations(999, 7, 100, MOST_NANOSECONDS)
    assert done_of(done, "m", 999, with_context=True) == NodeDone("length", "m", counts, times, (1, 2))
    assert done_of(done, "m", 999, with_context=False).context == ()
    assert done_of(Done(0, FinishReason.STOP), "m", 0, with_context=False).reason == "stop"


def test_vectors():
    data = array.array("f", [1.0, 2.0, 3.0, 4.0]).tobytes()
    assert embedding_of(Vectors(0, 2, 2, data), "a:1", 2) == Embedding([[1.0, 2.0], [3.0, 4.0]])
    assert embedding_of(Vectors(0, 2, 2, memoryview(data)), "a:1", 2) == Embedding([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(NodeBroken, match="2 vectors for 3 texts"):
        embedding_of(Vectors(0, 3, 2, data), "a:1", 3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_vectors_that_json_has_no_words_for_are_the_nodes_fault(number: float):
    with pytest.raises(NodeBroken, match="not finite"):
        embedding_of(Vectors(0, 1, 2, array.array("f", [1.0, number]).tobytes()), "a:1", 1)


@pytest.mark.parametrize(("told", "passed"), [(float("inf"), 0.0), (float("-inf"), LEAST_LOGPROB), (-0.5, -0.5)])
def test_a_logprob_is_a_number_that_json_carries(told: float, passed: float):
    (record,) = logprob_records([TokenLogprob(Logprob(5, told, "a"))])
    assert record["logprob"] == passed
