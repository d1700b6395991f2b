"""What happened, told once: the facts that metrics and the request log are made of.

`dispatch` tells an `Observer`; it does not know who listens. Prompts and answers never pass through here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from server.errors import NodeError
from server.exchange import (
    AskRequest,
    CacheOutcome,
    Done,
    Event,
    Failed,
    HomecomingOutcome,
    NodeShare,
    Timings,
    Usage,
)
from server.nodes import NodeId

RequestOutcome = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, when it is over. `error_code` is a `GatewayError.code`."""

    request: AskRequest
    outcome: RequestOutcome
    model: str
    node: str
    attempts: int
    nodes: tuple[NodeShare, ...]
    usage: Usage
    timings: Timings
    tokens_per_second: float | None
    cache: CacheOutcome
    homecoming: HomecomingOutcome
    error_code: str | None = None
    error: str | None = None


class Observer(Protocol):
    def request_finished(self, record: RequestRecord) -> None: ...

    def attempt_started(self, node: NodeId, model: str) -> None: ...

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None:
        """`reason` is the class of the NodeError in snake case without `node_`: unreachable, busy, broken …"""
        ...

    def answer_resumed(self, node: NodeId, way: str) -> None:
        """A half-told answer goes on at `node` by `way`: exact, chat, raw or replay."""
        ...


class SilentObserver:
    """Listens to nothing: for tests and embedding."""

    def request_finished(self, record: RequestRecord) -> None: ...

    def attempt_started(self, node: NodeId, model: str) -> None: ...

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None: ...

    def answer_resumed(self, node: NodeId, way: str) -> None: ...


class Trace(Protocol):
    """How far a request came whose client left (see `course.Course`)."""

    node: str
    model: str
    attempts: int
    shares: list[NodeShare]
    homecoming: HomecomingOutcome


def record_of(
    request: AskRequest, last: Event | None, cache: CacheOutcome, total_ms: float, trace: Trace
) -> RequestRecord:
    """The record of a request by its last event; None: its client left before there was one."""
    if isinstance(last, Done):
        return RequestRecord(
            request=request,
            outcome="done",
            model=last.model,
            node=last.node,
            attempts=last.attempts,
            nodes=last.nodes,
            usage=last.usage,
            timings=last.timings,
            tokens_per_second=last.tokens_per_second,
            cache=cache,
            homecoming=last.homecoming,
        )
    error = last.error if isinstance(last, Failed) else None
    return RequestRecord(
        request=request,
        outcome="cancelled" if error is None else "failed",
        model=trace.model or request.model or "",
        node=trace.node,
        attempts=trace.attempts,
        nodes=tuple(trace.shares),
        usage=Usage(),
        timings=Timings(0.0, 0.0, total_ms),
        tokens_per_second=None,
        cache=cache,
        homecoming=trace.homecoming,
        error_code=error.code if error is not None else None,
        error=error.message if error is not None else None,
    )


def reason_of(error: NodeError) -> str:
    """The error's class as a word for metrics: NodeUnreachable -> unreachable."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removeprefix("Node")).lower()
