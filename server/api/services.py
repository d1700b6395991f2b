"""What the API may use: the parts that the composition root built, in one value."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from server.exchange import AskRequest, Event

if TYPE_CHECKING:
    from server.backends.base import Backend
    from server.metrics import Metrics
    from server.nodes import NodeKind
    from server.phones_file import FleetFileState
    from server.registry import Registry
    from server.settings import Settings


class Dispatch(Protocol):
    """The one door to the fleet (see `server.dispatch.Dispatcher`)."""

    def stream(self, request: AskRequest) -> AsyncIterator[Sequence[Event]]:
        """Run one request. Yields batches of events; the last batch ends in exactly one Done or Failed.

        The caller closes the stream (aclose) when its client leaves: that cancels the work on the node.
        """
        ...

    def queue_status(self) -> dict[str, Any]:
        """{"waiting", "limit", "callers": {caller: waiting}, "oldest_s"}"""
        ...

    def cache_status(self) -> dict[str, Any]:
        """{"enabled", "entries", "bytes", "hits", "misses", "joined"}"""
        ...

    def held_conversations(self, node_id: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    registry: Registry
    dispatch: Dispatch
    backends: Mapping[NodeKind, Backend]
    metrics: Metrics
    fleet_file: Callable[[], FleetFileState]
    started_at: float  # wall clock, seconds
    draining: Callable[[], bool]
    node_headers: Mapping[str, str] | None = None
