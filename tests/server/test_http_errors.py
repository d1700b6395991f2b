"""Errors in the words of each API."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import (
    AnswerBroken,
    BodyTooLarge,
    CallerRefused,
    DeadlineExceeded,
    GatewayDraining,
    ModelNotFound,
    NoNodes,
    OperationUnsupported,
    QueueFull,
    RequestInvalid,
)
from server.http_errors import error_headers, error_record, http_status

INVALID = RequestInvalid("bad", field="prompt", hint="did you mean it?")


@pytest.mark.parametrize(
    ("error", "own", "dialects"),
    [
        (INVALID, 422, 400),
        (RequestInvalid("bad", status=400), 400, 400),
        (ModelNotFound("m"), 404, 404),
        (CallerRefused("no"), 403, 403),
        (CallerRefused("no", status=401), 401, 401),
        (BodyTooLarge("big"), 413, 413),
        (OperationUnsupported("no"), 501, 501),
        (QueueFull("full", 2.0), 429, 429),
        (NoNodes("none"), 503, 503),
        (GatewayDraining("bye"), 503, 503),
        (DeadlineExceeded("late"), 504, 504),
        (AnswerBroken("cut", node="a", tokens_told=3), 502, 502),
    ],
)
def test_statuses(error: Any, own: int, dialects: int):
    assert http_status(error, "ask") == own
    assert http_status(error, "openai") == http_status(error, "ollama") == dialects


def test_our_own_shape():
    assert error_record(INVALID, "ask") == {
        "error": {"code": "invalid_request", "message": "bad", "field": "prompt", "hint": "did you mean it?"}
    }
    assert error_record(QueueFull("full", 2.5), "ask")["error"]["retry_after_seconds"] == 2.5
    assert error_record(CallerRefused("no", status=401), "ask")["error"]["code"] == "unauthorized"
    broken = error_record(AnswerBroken("cut", node="a", tokens_told=3), "ask")["error"]
    assert (broken["node"], broken["tokens_told"]) == ("a", 3)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (INVALID, "invalid_request_error", None),
        (ModelNotFound("m"), "invalid_request_error", "model_not_found"),
        (CallerRefused("no", status=401), "invalid_request_error", "invalid_api_key"),
        (CallerRefused("no"), "permission_error", "forbidden"),
        (QueueFull("full", 2.0), "rate_limit_error", "queue_full"),
        (NoNodes("none"), "server_error", "no_nodes"),
    ],
)
def test_openais_shape(error: Any, kind: str, code: str | None):
    told = error_record(error, "openai")["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (told["type"], told["code"]) == (kind, code)


def test_ollamas_shape_is_one_sentence_with_the_hint():
    assert error_record(INVALID, "ollama") == {"error": "bad (did you mean it?)"}


def test_headers_say_when_to_come_back_and_how_to_say_who_one_is():
    assert dict(error_headers(QueueFull("full", 0.2))) == {b"retry-after": b"1"}
    assert dict(error_headers(QueueFull("full", 2.1))) == {b"retry-after": b"3"}
    assert b"www-authenticate" in dict(error_headers(CallerRefused("no", status=401)))
    assert error_headers(INVALID) == []
