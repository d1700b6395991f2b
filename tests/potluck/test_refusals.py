import json

import pytest

from potluck import (
    DeadlinePassed,
    GatewayFailed,
    InvalidRequest,
    KeyRefused,
    ModelUnknown,
    NoNodes,
    QueueFull,
    RequestRefused,
)
from potluck.refusals import read_refusal, refusal


def read(status, body, headers=None):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_refusal(status, headers or {}, content)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (422, "invalid_request", InvalidRequest),
        (413, "body_too_large", InvalidRequest),
        (401, "unauthorized", KeyRefused),
        (403, "forbidden", KeyRefused),
        (404, "model_not_found", ModelUnknown),
        (429, "queue_full", QueueFull),
        (503, "no_nodes", NoNodes),
        (503, "draining", GatewayFailed),
        (504, "deadline_exceeded", DeadlinePassed),
        (502, "nodes_failed", GatewayFailed),
    ],
)
def test_the_code_decides(status, code, kind):
    error = read(status, {"error": {"code": code, "message": "Because.", "field": "f", "hint": "Do so."}})
    assert type(error) is kind
    assert (error.status, error.code, error.field, error.hint) == (status, code, "f", "Do so.")
    assert error.message == str(error) == "Because."
    assert type(refusal({"code": code, "message": "x"})) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, KeyRefused),
        (404, RequestRefused),
        (418, RequestRefused),
        (429, QueueFull),
        (500, GatewayFailed),
        (503, NoNodes),
    ],
)
def test_an_unknown_code_falls_back_on_the_status(status, kind):
    assert type(read(status, {"error": {"code": "brand_new", "message": "x"}})) is kind


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("inf", None)],
)
def test_retry_after(header, seconds):
    error = read(429, {"error": {"code": "queue_full", "message": "full"}}, {"retry-after": header})
    assert error.retry_after_seconds == seconds


def test_foreign_bodies_keep_status_and_beginning():
    page = b"<html><head><title>502</title><style>h1 { color: red }</style></head>\n <h1>Bad   gateway</h1>"
    error = read(502, page + b"x" * 5000)
    assert type(error) is GatewayFailed
    assert str(error).startswith("the server answered 502: Bad gateway xxx")
    assert error.hint is not None and "no gateway's answer" in error.hint
    assert len(str(error)) < 250
    assert str(read(500, b"")) == "the server answered 500"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[]", b'{"error": 5}', b"\xff\xfe"])
def test_strange_bodies_are_still_refusals(body):
    assert isinstance(read(500, body), GatewayFailed)


def test_the_dialect_of_ollama_is_understood():
    assert str(read(404, {"error": "model 'x' not found"})) == "model 'x' not found"


def test_a_refusal_without_words_still_says_something():
    assert "queue_full" in str(refusal({"code": "queue_full"}))
