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
        """A half-told answer goes on at `node` by `way`: chat, raw or replay."""
        ...


class SilentObserver:
    """Listens to nothing: for tests and embedding."""

    def request_finished(self, record: RequestRecord) -> None: ...

    def attempt_started(self, node: NodeId, model: str) -> None: ...

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None: ...

    def answer_resumed(self, node: NodeId, way: str) -> None: ...


def record_of(request: AskRequest, last: Event | None, cache: CacheOutcome, total_ms: float) -> RequestRecord:
    """The record of a request by its last event; None: its client left before there was one."""
    if isinstance(last, Done):
        return RequestRecord(
            request,
            "done",
            last.model,
            last.node,
            last.attempts,
            last.nodes,
            last.usage,
            last.timings,
            last.tokens_per_second,
            cache,
            last.homecoming,
        )
    timings = Timings(0.0, 0.0, total_ms)
    if isinstance(last, Failed):
        return RequestRecord(
            request,
            "failed",
            last.model,
            last.node,
            last.attempts,
            last.nodes,
            Usage(),
            timings,
            None,
            cache,
            last.homecoming,
            last.error.code,
            last.error.message,
        )
    return RequestRecord(request, "cancelled", request.model or "", "", 0, (), Usage(), timings, None, cache, "new")


def reason_of(error: NodeError) -> str:
    """The error's class as a word for metrics: NodeUnreachable -> unreachable."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removeprefix("Node")).lower()
