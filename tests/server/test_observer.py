"""The record of a request, by its last event."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from server.attempt import NoWayOn
from server.errors import AnswerBroken, NodeBroken, NodeBusy, NodeError, NodeStalled, NodeUnreachable
from server.exchange import Done, Durations, Failed, HomecomingOutcome, NodeShare, Started, Timings, Token, Usage
from server.observer import SilentObserver, reason_of, record_of
from tests.server.scripted_nodes import chat

REQUEST = chat("hi", model="qwen:1b")
SHARES = (NodeShare("a", 2, "first"), NodeShare("b", 3, "chat"))


@dataclass
class Trace:
    """How far the request came."""

    node: str = "b"
    model: str = "qwen:1b"
    attempts: int = 3
    shares: list[NodeShare] = field(default_factory=lambda: list(SHARES))
    homecoming: HomecomingOutcome = "home"


def test_a_whole_answer() -> None:
    done = Done("stop", "qwen:1b", "b", Usage(4, 5), Durations(generation=10**9), Timings(1, 2, 3), 2, SHARES)
    record = record_of(REQUEST, done, "miss", 99.0, Trace(node="elsewhere", attempts=9))
    assert (record.outcome, record.model, record.node, record.attempts) == ("done", "qwen:1b", "b", 2)
    assert (record.nodes, record.usage, record.timings) == (SHARES, done.usage, done.timings)
    assert (record.tokens_per_second, record.cache, record.homecoming) == (5.0, "miss", "new")
    assert (record.error_code, record.error) == (None, None)


def test_a_failed_answer() -> None:
    error = AnswerBroken("it broke off", node="b", tokens_told=5)
    record = record_of(REQUEST, Failed(error, "qwen:1b", "b", 3, SHARES, "home"), "off", 99.0, Trace())
    assert (record.outcome, record.node, record.attempts, record.nodes) == ("failed", "b", 3, SHARES)
    assert (record.error_code, record.error, record.homecoming) == ("nodes_failed", "it broke off", "home")
    assert record.timings.total == 99.0


@pytest.mark.parametrize("last", [None, Started("off"), Token("x")])
def test_a_client_that_left(last: Started | Token | None) -> None:
    record = record_of(REQUEST, last, "joined", 99.0, Trace())
    assert (record.outcome, record.model, record.cache) == ("cancelled", "qwen:1b", "joined")
    assert (record.node, record.attempts, record.nodes, record.homecoming) == ("b", 3, SHARES, "home")
    assert (record.error, record.error_code, record.timings.total) == (None, None, 99.0)


def test_a_client_that_left_before_a_node_was_asked() -> None:
    record = record_of(REQUEST, None, "off", 1.0, Trace("", "", 0, [], "new"))
    assert (record.model, record.node, record.attempts, record.nodes) == ("qwen:1b", "", 0, ())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NodeUnreachable("x"), "unreachable"),
        (NodeBusy("x"), "busy"),
        (NodeBroken("x"), "broken"),
        (NodeStalled("x", "load"), "stalled"),
        (NoWayOn("x"), "no_way_on"),
    ],
)
def test_failures_have_a_word_for_metrics(error: NodeError, reason: str) -> None:
    assert reason_of(error) == reason


def test_the_silent_observer_takes_everything() -> None:
    observer = SilentObserver()
    observer.request_finished(record_of(REQUEST, None, "off", 0.0, Trace()))
    spec = REQUEST.model or ""
    for tell in (observer.attempt_started, observer.answer_resumed):
        tell("n", spec)  # type: ignore[arg-type]
    observer.attempt_failed("n", spec, "busy")  # type: ignore[arg-type]
