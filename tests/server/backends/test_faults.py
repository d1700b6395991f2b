"""Who is to blame, by what a node says: every error that real Ollama was recorded with, and those of other servers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.faults import (
    FORM_WORDS,
    MAX_ERROR_CHARS,
    MAX_RETRY_AFTER_SECONDS,
    NODE_FORM_WORDS,
    about_form,
    error_of_line,
    error_of_status,
    error_text,
    retry_after_seconds,
)
from server.errors import NodeBroken, NodeBusy, NodeError, NodeIncapable, NodeRefused


def error(status: int, body: bytes = b"", **headers: bytes) -> NodeError:
    found = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return error_of_status("10.0.0.1:11434", status, found, body)


@pytest.mark.parametrize(
    ("status", "text", "passed_on"),
    [
        (400, "invalid model name", 400),
        (400, "the input length exceeds the context length", 400),
        (404, "model 'x' not found", 404),
        (500, 'option "temperature" must be of type float32', 400),
        (500, 'invalid format: "yaml"; expected "json" or a valid JSON Schema object', 400),
        (500, "invalid JSON schema in format", 400),
        (422, "Unprocessable", 422),
    ],
)
def test_the_clients_mistakes_are_passed_on_with_the_nodes_words(status: int, text: str, passed_on: int):
    found = error(status, b'{"error":%b}' % _json(text))
    assert type(found) is NodeRefused and not found.strike
    assert (found.status, found.message) == (passed_on, text)


def test_a_refused_form_is_for_another_node():
    refused = NodeRefused("The schema cannot be followed: Unimplemented keys", 400)
    for words in (FORM_WORDS, NODE_FORM_WORDS):
        found = about_form(refused, words)
        assert isinstance(found, NodeIncapable) and (found.message, found.status) == (refused.message, 400)
    for other in (NodeRefused("max_tokens must be at least 1", 400), NodeBroken("the grammar broke")):
        assert about_form(other, FORM_WORDS) is other
    ollamas = NodeRefused("invalid JSON schema in format", 400)
    assert about_form(ollamas, NODE_FORM_WORDS) is ollamas


def test_what_a_server_does_not_have_is_not_the_clients_mistake():
    found = error(501, b'{"error":"This server does not support embeddings. Start it with `--embeddings`"}')
    assert isinstance(found, NodeIncapable) and (found.status, found.strike) == (501, False)


@pytest.mark.parametrize(
    "text",
    [
        "an error was encountered while running the model: unexpected EOF",
        "llama-server process has terminated: signal: illegal instruction",
        "the option was invalid format",
        'option "x" is fine',
    ],
)
def test_other_words_under_500_are_the_nodes_fault(text: str):
    found = error(500, b'{"error":%b}' % _json(text))
    assert isinstance(found, NodeBroken) and found.strike and text in found.message


@pytest.mark.parametrize("status", [401, 403, 407, 408, 500, 502, 504, 301])
def test_a_wrong_key_and_a_failing_server_count_against_the_node(status: int):
    assert isinstance(error(status, b"no"), NodeBroken)


@pytest.mark.parametrize("status", [429, 503])
def test_busy_is_no_fault_and_keeps_when_to_come_back(status: int):
    found = error(status, b'{"error":"server busy"}', retry_after=b"7")
    assert isinstance(found, NodeBusy) and not found.strike
    assert found.retry_after_seconds == 7.0 and found.message == "server busy"
    nothing = error(status)
    assert isinstance(nothing, NodeBusy) and nothing.retry_after_seconds is None


def test_a_status_without_a_body_still_says_something():
    assert "403" in error(403).message


def test_only_a_first_line_can_be_the_clients_mistake():
    text = 'invalid format: "yaml"; expected "json"'
    first = error_of_line("a", text, first=True)
    assert isinstance(first, NodeRefused) and first.status == 400
    assert isinstance(error_of_line("a", text, first=False), NodeBroken)
    assert isinstance(error_of_line("a", "unexpected EOF", first=True), NodeBroken)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"plain"}', "plain"),
        (b'{"error":{"message":"nested","type":"x"}}', "nested"),
        (b'{"detail":"of FastAPI"}', "of FastAPI"),
        (b"404 page not found\n", "404 page not found"),
        (b'{"error":{"code":1}}', '{"code":1}'),
        (b"[1]", "[1]"),
        (b"\xff", "�"),
        (b"", ""),
        (b"x" * 9999, "x" * MAX_ERROR_CHARS),
        (b'{"error":%b}' % (b"[" * 500 + b"]" * 500), "an error that is no text"),
    ],
)
def test_the_sentence_in_an_error_body(body: bytes, text: str):
    assert error_text(body) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"3", 3.0),
        (b" 10 ", 10.0),
        (b"", None),
        (b"soon", None),
        (b"\xb2", None),  # a digit to Unicode, none to arithmetic
        (b"-1", None),
        (b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        (b"9" * 5000, MAX_RETRY_AFTER_SECONDS),
        (b"Sat, 21 Nov 2099 13:00:30 GMT", MAX_RETRY_AFTER_SECONDS),
        (b"Sat, 21 Nov 2026 13:00:30 GMT", 30.0),
        (b"Sat, 21 Nov 2026 12:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: bytes, seconds: float | None):
    assert retry_after_seconds(value, datetime(2026, 11, 21, 13, 0, 0, tzinfo=UTC)) == seconds


@given(st.binary(max_size=60) | st.text("0123456789 ,:-+GMTadonJ²").map(lambda text: text.encode("latin-1")))
def test_no_retry_after_is_an_exception(value: bytes):
    found = retry_after_seconds(value)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_SECONDS


def _json(text: str) -> bytes:
    return b'"' + text.replace('"', '\\"').encode() + b'"'
