"""The log's lines: what is in them, what never is, and in which form."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from typing import Any

import orjson
import pytest

from server.api.app import build_app
from server.errors import QueueFull, RequestInvalid
from server.logs import LONGEST_LOGGED_PROMPT, RequestLog, standard_logging
from server.nodes import NodeId
from tests.server.api.gateway import Call, gateway
from tests.server.api.test_incoming import incoming
from tests.server.test_metrics import RECORD

PROMPT = "a secret question"
ASKED = replace(RECORD, request=replace(RECORD.request, messages=[{"role": "user", "content": PROMPT}]))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_one_line_per_request():
    stream = io.StringIO()
    RequestLog(stream).request_finished(ASKED)
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "request",
        "id": "r",
        "caller": "ip:1",
        "dialect": "openai",
        "outcome": "done",
        "model": "Qwen2.5:1.5B",
        "node": "kitchen",
        "attempts": 3,
        "nodes": ["attic:4:first", "kitchen:6:raw"],
        "cache": "miss",
        "homecoming": "home",
        "queue_ms": 1.0,
        "first_token_ms": 300.0,
        "total_ms": 2000.0,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "tokens_per_second": 5.0,
    }


def test_a_failed_request_is_a_warning_with_its_reason():
    stream = io.StringIO()
    failed = replace(ASKED, outcome="failed", error_code="no_nodes", error="nobody", tokens_per_second=None)
    RequestLog(stream).request_finished(failed)
    (line,) = lines(stream)
    assert (line["level"], line["error_code"], line["error"]) == ("warning", "no_nodes", "nobody")


def test_prompts_are_logged_only_where_asked_and_cut_short():
    stream = io.StringIO()
    RequestLog(stream).request_finished(ASKED)
    assert PROMPT not in stream.getvalue()
    RequestLog(stream, log_prompts=True).request_finished(ASKED)
    assert lines(stream)[1]["prompt"] == [{"role": "user", "content": PROMPT}]
    long = replace(ASKED, request=replace(ASKED.request, messages=(), prompt="x" * 10_000))
    RequestLog(stream, log_prompts=True).request_finished(long)
    assert len(lines(stream)[2]["prompt"]) == LONGEST_LOGGED_PROMPT


def test_attempts_and_resumptions():
    stream = io.StringIO()
    log = RequestLog(stream)
    log.attempt_started(NodeId("kitchen"), "m")
    log.attempt_failed(NodeId("kitchen"), "m", "stalled")
    log.answer_resumed(NodeId("attic"), "raw")
    assert [line["event"] for line in lines(stream)] == ["attempt failed", "answer resumed"]


async def test_a_refusal_before_dispatch_has_a_line_and_one_after_it_has_not():
    stream = io.StringIO()
    log = RequestLog(stream)
    request = incoming(Call("POST", "/ask?key=s3cret", headers={"X-Request-Id": "mine"}))
    log.refused(request, RequestInvalid("'prompt' is required", field="prompt"))
    (line,) = lines(stream)
    assert (line["id"], line["status"], line["error_code"]) == ("mine", 422, "invalid_request")
    await request.read()
    request.hand_over()
    log.refused(request, QueueFull("full", 1.0))
    request.end()
    assert len(lines(stream)) == 1


async def test_every_path_through_the_application_has_exactly_one_line():
    stream = io.StringIO()
    built = build_app(replace(gateway().services, log=RequestLog(stream)))
    await Call("POST", "/ask", {"prompt": ""}).run(built)
    await Call("POST", "/ask", {"prompt": "a"}).run(built)  # told by dispatch, which is scripted here
    await Call("GET", "/nothing").run(built)
    assert [line["status"] for line in lines(stream)] == [422, 404]


async def test_a_fault_has_its_traceback_in_the_log():
    stream = io.StringIO()
    try:
        raise RuntimeError("what happened")
    except RuntimeError as error:
        RequestLog(stream).failed(incoming(Call("POST", "/ask")), error)
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert "RuntimeError: what happened" in line["exception"]


def test_exposure_says_what_to_do():
    stream = io.StringIO()
    RequestLog(stream).exposed("0.0.0.0")
    (line,) = lines(stream)
    assert "POTLUCK_API_KEYS" in line["event"]


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        (io.StringIO(), "auto", True),
        (Terminal(), "auto", False),
        (Terminal(), "json", True),
        (io.StringIO(), "console", False),
    ],
)
def test_json_for_machines_and_columns_for_people(stream: io.StringIO, log_format: Any, is_json: bool):
    RequestLog(stream, log_format).request_finished(ASKED)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.startswith("{") is is_json
    assert "kitchen" in text
    assert ("\x1b[" in text) is (isinstance(stream, Terminal) and not is_json)


@pytest.mark.parametrize("path", ["/join/secret", "/%6Aoin/secret", "//JOIN//secret", "/join%2Fsecret"])
def test_a_server_that_traces_its_requests_tells_no_invitation(path: str, caplog: pytest.LogCaptureFixture):
    with standard_logging(io.StringIO(), "json"), caplog.at_level(5, "uvicorn.asgi"):
        trace = logging.getLogger("uvicorn.asgi")
        trace.log(5, "%s - ASGI [%d] Started scope=%s", "192.168.1.20:5", 3, {"path": path})
        trace.log(5, "%s - ASGI [%d] Started scope=%s", "192.168.1.20:5", 4, {"path": "/ask"})
    assert "secret" not in caplog.text and "ASGI [3]" in caplog.text and "/ask" in caplog.text
    assert logging.getLogger("uvicorn.asgi").filters == []


def test_our_modules_lines_go_the_same_way_and_uvicorns_access_lines_nowhere():
    stream = io.StringIO()
    access = logging.getLogger("uvicorn.access")
    handler = logging.StreamHandler(io.StringIO())
    access.addHandler(handler)
    before = access.handlers[:]
    try:
        with standard_logging(stream, "json"):
            logging.getLogger("server.health").warning("phone %s is silent", "kitchen")
            assert not access.hasHandlers()
        assert access.handlers == before
    finally:
        access.removeHandler(handler)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("phone kitchen is silent", "warning", "server.health")
    logging.getLogger("server.health").debug("not here")
    assert logging.getLogger("server").handlers == []
