"""What the API may use: the parts that the composition root built, in one value."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from server.exchange import AskRequest, Event

if TYPE_CHECKING:
    from server.api.access import AccessRules, Exposure
    from server.api.incoming import Incoming
    from server.backends.base import Backend
    from server.backends.operations import Operations
    from server.errors import GatewayError
    from server.nodes import NodeKind
    from server.phones import Joining
    from server.registry import Registry
    from server.settings import Settings


class Dispatch(Protocol):
    """The one door to the fleet (see `server.dispatch.Dispatcher`)."""

    def stream(self, request: AskRequest) -> AsyncGenerator[Sequence[Event], None]:
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


class FleetFile(Protocol):
    """How the reading of the fleet file went (see `server.phones_file.FleetFileState`)."""

    @property
    def path(self) -> Any: ...

    @property
    def loaded_at(self) -> float | None: ...

    @property
    def error(self) -> str | None: ...

    @property
    def line(self) -> int | None: ...

    @property
    def column(self) -> int | None: ...


class HttpMetrics(Protocol):
    """What the HTTP layer counts, and what it shows of all counts."""

    def http_finished(self, route: str, status: int) -> None: ...

    def exposition(self) -> tuple[bytes, bytes]:
        """Content type and text of all metrics, for Prometheus."""
        ...


class HttpLog(Protocol):
    """What the HTTP layer reports: what was refused before it became a request to the fleet, and our own faults."""

    def refused(self, incoming: Incoming, error: GatewayError) -> None: ...

    def failed(self, incoming: Incoming, error: BaseException) -> None: ...


@dataclass(slots=True)
class OpenRequests:
    """The requests that are being answered now. Once draining, no further one is begun."""

    requests: set[Incoming] = field(default_factory=set)
    resumable: set[Incoming] = field(default_factory=set)  # of these, what may be cut and asked again at no loss
    draining: bool = False

    def cut_resumable(self, error: GatewayError) -> None:
        for incoming in list(self.resumable):
            incoming.cut(error)

    def cut(self, error: GatewayError) -> None:
        """End all of them: streams with this error as their last event. Those at dispatch are cancelled there."""
        for incoming in list(self.requests):
            incoming.cut(error)


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    access: AccessRules
    exposure: Exposure
    registry: Registry
    dispatch: Dispatch
    backends: Mapping[NodeKind, Backend]
    operations: Operations
    joining: Joining
    metrics: HttpMetrics
    log: HttpLog
    open_requests: OpenRequests
    fleet_file: Callable[[], FleetFile]
    started_at: float  # wall clock, seconds
    loop_time: Callable[[], float]  # the clock on which breakers rest
    embedded_status: Callable[[], dict[str, Any] | None] = lambda: None
    adb_status: Callable[[], dict[str, Any] | None] = lambda: None
