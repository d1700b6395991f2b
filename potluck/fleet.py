"""What `/health` and `/api/nodes` tell of the gateway and its fleet, as values.

Knows nothing of HTTP or of how the values are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .answers import Record, as_record, read_count, read_number, read_optional_text, read_record, read_text


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One node. `status`: ready, silent, draining, disabled, unknown; `breaker`: closed, open, half_open."""

    id: str
    name: str
    kind: str
    address: str
    status: str
    breaker: str
    models: tuple[str, ...]
    resident: tuple[str, ...]
    held_conversations: int
    in_flight: int
    slots: int
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    last_error: str | None
    since: str | None
    weight: float | None
    answered: int
    failed: int
    reported_slots: int | None = None
    """What the node itself says; `slots` is what counts, which the fleet file may have changed."""
    gpu_node: bool = False
    """One of Potluck's own, which loads models on request."""
    resting: str | None = None
    """Why a phone gets nothing though it is there: too hot, or low on battery."""

    @property
    def serving(self) -> bool:
        """Would a request be given to it now, if a slot were free?"""
        return self.status == "ready" and self.breaker != "open" and self.resting is None


@dataclass(frozen=True, slots=True)
class FleetFile:
    """`error` says what is wrong with the file; the fleet read before it is then kept."""

    path: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class QueueFacts:
    waiting: int = 0
    limit: int = 0
    callers: int = 0


@dataclass(frozen=True, slots=True)
class CacheFacts:
    enabled: bool = False
    entries: int = 0
    hits: int = 0
    misses: int = 0
    joined: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of the requests that needed no node; None before the first one."""
        asked = self.hits + self.misses + self.joined
        return (self.hits + self.joined) / asked if asked else None


@dataclass(frozen=True, slots=True)
class EmbeddedFacts:
    """The gateway's own node, the last resort. `reason` says why it cannot serve, where it cannot."""

    starting: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The whole. `status`: ok, degraded (some node is missing) or unavailable (none answers)."""

    status: str
    version: str
    uptime_seconds: float
    fleet_file: FleetFile
    queue: QueueFacts
    cache: CacheFacts
    nodes: tuple[NodeHealth, ...]
    embedded: EmbeddedFacts
    record: Mapping[str, Any]
    """The gateway's own JSON, with whatever a newer one adds."""


def read_health(value: object) -> Health:
    record = as_record(value, "an object")
    return Health(
        status=read_text(record, "status"),
        version=read_optional_text(record, "version") or "",
        uptime_seconds=read_number(record, "uptime_s") or 0.0,
        fleet_file=_read_fleet_file(read_record(record, "fleet_file")),
        queue=_read_queue(read_record(record, "queue")),
        cache=_read_cache(read_record(record, "cache")),
        nodes=read_nodes(record),
        embedded=_read_embedded(read_record(record, "embedded")),
        record=record,
    )


def read_nodes(value: object) -> tuple[NodeHealth, ...]:
    record = as_record(value, "an object")
    return tuple(_read_node(as_record(node, "an object for each node")) for node in record.get("nodes") or ())


def read_model_names(value: object) -> list[str]:
    """The names in an OpenAI model list."""
    data = as_record(value, "an object").get("data") or ()
    return [read_text(as_record(entry, "an object for each model"), "id") for entry in data]


def _read_node(record: Record) -> NodeHealth:
    return NodeHealth(
        id=read_text(record, "id"),
        name=read_optional_text(record, "name") or read_text(record, "id"),
        kind=read_optional_text(record, "kind") or "",
        address=read_optional_text(record, "address") or "",
        status=read_text(record, "status"),
        breaker=read_optional_text(record, "breaker") or "closed",
        models=_read_names(record, "models"),
        resident=_read_names(record, "resident"),
        held_conversations=read_count(record, "held_conversations"),
        in_flight=read_count(record, "in_flight"),
        slots=read_count(record, "slots"),
        tokens_per_second=read_number(record, "tokens_per_second"),
        prompt_tokens_per_second=read_number(record, "prompt_tokens_per_second"),
        last_error=read_optional_text(record, "last_error"),
        since=read_optional_text(record, "since"),
        weight=_read_weight(record),
        answered=read_count(record, "answered"),
        failed=read_count(record, "failed"),
        reported_slots=None if record.get("reported_slots") is None else read_count(record, "reported_slots"),
        gpu_node=record.get("gpu_node") is True,
        resting=read_optional_text(record, "resting"),
    )


def _read_weight(record: Record) -> float | None:
    """None stands for "auto": the node's weight is its learned speed."""
    return None if isinstance(record.get("weight"), str) else read_number(record, "weight")


def _read_names(record: Record, name: str) -> tuple[str, ...]:
    return tuple(str(entry) for entry in record.get(name) or ())


def _read_fleet_file(record: Record) -> FleetFile:
    error = record.get("error")
    return FleetFile(read_optional_text(record, "path"), None if error is None else str(error))


def _read_embedded(record: Record) -> EmbeddedFacts:
    return EmbeddedFacts(record.get("starting") is True, read_optional_text(record, "reason"))


def _read_queue(record: Record) -> QueueFacts:
    callers = record.get("callers")
    number = len(callers) if isinstance(callers, Mapping) else read_count(record, "callers")
    return QueueFacts(read_count(record, "waiting"), read_count(record, "limit"), number)


def _read_cache(record: Record) -> CacheFacts:
    return CacheFacts(
        enabled=record.get("enabled") is not False and bool(record),
        entries=read_count(record, "entries"),
        hits=read_count(record, "hits"),
        misses=read_count(record, "misses"),
        joined=read_count(record, "joined"),
    )
