import httpx
import pytest

from potluck import Misuse, ModelUnknown, NoNodes, Timeouts, UnexpectedAnswer
from potluck.calls import (
    ask_call,
    batch_call,
    batch_stream_call,
    client_settings,
    health_call,
    load_call,
    models_call,
    nodes_call,
    stream_call,
    unload_call,
)
from tests.potluck.loopback import ANSWER, health, node

TIMEOUTS = Timeouts(connect_seconds=1, answer_seconds=2, silence_seconds=3, lookup_seconds=4)


@pytest.mark.parametrize(
    ("call", "method", "path", "wait"),
    [
        (ask_call("hi", None, {}, TIMEOUTS), "POST", "/ask", 2),
        (stream_call("hi", None, {}, TIMEOUTS), "POST", "/ask_stream", 3),
        (batch_call(["hi"], {}, TIMEOUTS), "POST", "/ask_batch", 2),
        (batch_stream_call(["hi"], {}, TIMEOUTS), "POST", "/ask_batch", 3),
        (health_call(TIMEOUTS), "GET", "/health", 4),
        (nodes_call(TIMEOUTS), "GET", "/api/nodes", 4),
        (models_call(TIMEOUTS), "GET", "/v1/models", 4),
        (load_call("m", None, {}, TIMEOUTS), "POST", "/api/models/load", 2),
        (unload_call("m", None, TIMEOUTS), "POST", "/api/models/unload", 4),
    ],
)
def test_each_call_has_its_route_and_its_patience(call, method, path, wait):
    assert (call.method, call.path) == (method, path)
    assert call.timeout == httpx.Timeout(wait, connect=1)


def response(status=200, **content):
    return httpx.Response(status, request=httpx.Request("GET", "http://x/health"), **content)


def test_a_gateway_without_nodes_still_tells_its_health():
    read = health_call(TIMEOUTS).read(response(503, json=health(node("a"), status="unavailable")))
    assert read.status == "unavailable"
    with pytest.raises(UnexpectedAnswer):
        nodes_call(TIMEOUTS).read(response(200, text="<html>"))


def test_a_refusal_becomes_its_exception():
    error = {"error": {"code": "model_not_found", "message": "model 'x' not found"}}
    with pytest.raises(ModelUnknown):
        ask_call("hi", None, {}, TIMEOUTS).read(response(404, json=error))


@pytest.mark.parametrize("results", [None, [], [ANSWER, ANSWER], "two"])
def test_a_batch_must_answer_every_request(results):
    with pytest.raises(UnexpectedAnswer):
        batch_call(["hi"], {}, TIMEOUTS).read(response(200, json={"results": results}))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://[::1", "http://x:port"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(Misuse, match="no address of a gateway"):
        client_settings(url, None)


@pytest.mark.parametrize("key", ["", "two words", "line\nend", "klucz-ż"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(Misuse) as caught:
        client_settings("http://x", key)
    assert not key or key not in str(caught.value)


def test_loading_says_where_and_how_and_nothing_that_was_not_given():
    assert load_call("m", None, {"dtype": None}, TIMEOUTS).body == {"model": "m"}
    call = load_call("m", "tower", {"keep_alive": -1}, TIMEOUTS)
    assert call.body == {"model": "m", "node": "tower", "keep_alive": -1}
    told = {"model": "m", "status": "success", "node": "tower"}
    assert call.read(response(200, json=told)) == told
    assert unload_call("m", "tower", TIMEOUTS).body == {"model": "m", "node": "tower"}
    with pytest.raises(UnexpectedAnswer):
        call.read(response(200, json=[]))
    with pytest.raises(NoNodes, match="tower: no room"):
        call.read(response(503, json={"error": "tower: no room"}))
    with pytest.raises(Misuse):
        load_call("m", None, {"stream": True}, TIMEOUTS)
