"""The error tree: statuses, hints, and who is to blame."""

from __future__ import annotations

import inspect

import pytest

from server import errors
from server.errors import (
    AnswerBroken,
    CallerRefused,
    GatewayDraining,
    GatewayError,
    ModelNotFound,
    NodeBroken,
    NodeBusy,
    NodeError,
    NodeIncapable,
    NodeRefused,
    NodeStalled,
    NodeUnreachable,
    QueueFull,
    RequestInvalid,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_statuses_and_codes() -> None:
    known = {kind.code: kind.status for kind in CLASSES if issubclass(kind, GatewayError)}
    assert known == {
        "internal": 500,
        "invalid_request": 422,
        "model_not_found": 404,
        "node_not_found": 404,
        "invitation_not_found": 404,
        "model_in_use": 409,
        "forbidden": 403,
        "body_too_large": 413,
        "unsupported": 501,
        "queue_full": 429,
        "loopback_only": 409,
        "fleet_file_unusable": 409,
        "too_many_tries": 429,
        "phone_unreachable": 502,
        "no_nodes": 503,
        "draining": 503,
        "deadline_exceeded": 504,
        "nodes_failed": 502,
        "not_found": 404,
        "method_not_allowed": 405,
    }


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = errors.__doc__ or ""
    assert [kind.__name__ for kind in CLASSES if f" {kind.__name__} " not in f" {drawn} "] == []


def test_a_request_may_be_refused_with_400() -> None:
    refused = RequestInvalid("no", field="options.seed", status=400)
    assert (refused.http_status, refused.field, RequestInvalid("no").http_status) == (400, "options.seed", 422)
    assert CallerRefused("who?", status=401).http_status == 401


def test_full_and_draining_say_when_to_come_back() -> None:
    """Full -> 429 with Retry-After."""
    full = QueueFull("full", 12.4)
    assert (full.retry_after, full.hint) == (12.4, "try again in 12 s")
    assert QueueFull("full", 0.2).hint == "try again in 1 s"
    assert GatewayDraining("bye").retry_after is not None
    assert GatewayError("x").retry_after is None


def test_a_missing_model_names_the_nearest() -> None:
    assert ModelNotFound("qwn", ("qwen", "qwen2")).hint == "did you mean qwen or qwen2?"
    assert ModelNotFound("qwn").hint is None


def test_a_broken_answer_says_where_and_when() -> None:
    broken = AnswerBroken("gone", node="phone-1", tokens_told=7)
    assert (broken.node, broken.tokens_told, broken.http_status) == ("phone-1", 7, 502)


@pytest.mark.parametrize(
    ("error", "strike"),
    [
        (NodeUnreachable("x"), True),
        (NodeBroken("x"), True),
        (NodeStalled("x", "first_token"), True),
        (NodeBusy("x"), False),
        (NodeRefused("x", 400), False),
        (NodeIncapable("x", 501), False),
    ],
)
def test_whose_fault_it_is(error: NodeError, strike: bool) -> None:
    """Not the node's fault: 4xx; 429 and 503 mean busy, no strike."""
    assert error.strike is strike
    assert not isinstance(error, GatewayError)
