"""The core types of the gateway: what a node is, what we know of it, and what it is doing. Read this first.

`NodeSpec` is what the owner wrote, `Node` adds what probes found out; both are values, replaced whole. `Load` is the
one mutable thing: the hot counters and learned speeds that change with every request. Knows nothing of HTTP or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NewType

from server.breaker import CLOSED, Breaker
from server.care import UNTROUBLED, Care, Condition, Pace
from server.speeds import Speeds

NodeId = NewType("NodeId", str)
ModelKey = NewType("ModelKey", str)  # a model's name in the one spelling we compare: see `model_key`
NodeKind = Literal["ollama", "openai", "relay"]
NodeOrigin = Literal["file", "embedded", "discovered", "adb"]

DEFAULT_OLLAMA_PORT = 11434
DEFAULT_RELAY_PORT = 8765


def model_key(name: str) -> ModelKey:
    """The comparable form of a model's name: case and a trailing `:latest` do not matter."""
    return ModelKey(name.strip().lower().removesuffix(":latest"))


class NodeStatus(StrEnum):
    UNKNOWN = "unknown"  # not probed yet
    READY = "ready"
    SILENT = "silent"  # three probes in a row failed
    DRAINING = "draining"  # finishes what it has, gets nothing new, then leaves
    DISABLED = "disabled"  # the owner says so


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What the fleet file (or discovery) says about a node."""

    id: NodeId
    name: str
    kind: NodeKind
    host: str
    port: int
    models: tuple[str, ...] = ()  # the owner's choice and order; empty: what the node lists
    weight: float | None = 1.0  # None: "auto", learned tokens/s
    max_concurrency: int | None = None  # None: what the node tells, else 1
    serial: str | None = None
    tags: tuple[str, ...] = ()
    enabled: bool = True
    api_key_env: str | None = None
    continues_final_message: bool = False  # kind openai: vLLM's continue_final_message works there
    tls: bool = False  # kind relay: the node is spoken to through TLS
    tls_file: str | None = None  # certificates that are trusted, PEM; None: those that the system trusts
    origin: NodeOrigin = "file"
    last_resort: bool = False  # the embedded node: used only when nothing else can serve
    # of a phone that joined: chip, ram_bytes, android, termux, ollama, mode, model, tokens_per_second
    details: Mapping[str, str | int | float] = field(default_factory=dict, hash=False)
    warm_up: tuple[str, ...] | None = None  # what it should hold in memory, first choice first; None: by the setting
    keep_alive: str | float | None = None  # of requests that name none; None: as the node has it

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """One model as one node has it. Same digest = same weights and template."""

    name: str
    digest: str = ""
    size_bytes: int = 0
    listing: Mapping[str, Any] = field(default_factory=dict)  # the node's own record, for /api/tags


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model that is in the node's memory now."""

    name: str
    context_length: int | None = None
    expires_at: str | None = None
    listing: Mapping[str, Any] = field(default_factory=dict)  # the node's own record, for /api/ps


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What one successful probe found out."""

    version: str
    models: tuple[ModelCopy, ...]
    resident: tuple[ResidentModel, ...] = ()
    slots: int | None = None
    continues_assistant: bool = False
    renders: bool = False  # answers `_debug_render_only` (Ollama 0.11.5 and later, our own node)
    gpu_node: bool = False  # our own: loads models on request and tells its devices
    node_id: str = ""  # our own: the id that it has wherever it is found, in hexadecimal figures


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the gateway knows it: the owner's words and the last probe's findings."""

    spec: NodeSpec
    status: NodeStatus = NodeStatus.UNKNOWN
    since: float = 0.0  # wall clock, seconds: when `status` began
    report: ProbeReport | None = None
    models: Mapping[ModelKey, ModelCopy] = field(default_factory=dict)  # only those it may serve
    resident: Mapping[ModelKey, ResidentModel] = field(default_factory=dict)
    failed_probes: int = 0
    refused_probe: bool = False  # since the last good probe, one found nobody listening: a restart
    last_error: str | None = None
    condition: Condition | None = None  # battery and heat, of phones that tell
    care: Care = UNTROUBLED  # what the condition means for the work it gets

    @property
    def resting(self) -> str | None:
        """Why it gets no work though it could do some, in words."""
        return self.care.resting

    @property
    def id(self) -> NodeId:
        return self.spec.id

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def slots(self) -> int:
        """How many requests it runs at once: the owner's word, else the node's own, else one."""
        if self.spec.max_concurrency is not None:
            return self.spec.max_concurrency
        if self.report is not None and self.report.slots is not None:
            return self.report.slots
        return 1

    @property
    def is_gpu_node(self) -> bool:
        """Is it one of our own, as far as it has ever told?"""
        return self.report is not None and self.report.gpu_node

    @property
    def own_model(self) -> ModelKey | None:
        """What `auto` means here: the owner's first choice, else what is loaded, else the first listed."""
        if not self.models:
            return None
        for name in self.spec.models:
            if model_key(name) in self.models:
                return model_key(name)
        for key in self.resident:
            if key in self.models:
                return key
        return next(iter(self.models))


@dataclass(slots=True)
class Load:
    """What a node is doing and how fast it has been, in all and with each model. Mutated by `dispatch` alone."""

    in_flight: int = 0
    breaker: Breaker = CLOSED
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    answered: int = 0
    failed: int = 0
    shunned_until: float = 0.0  # a fast failure counts as load until then (loop clock)
    busy_until: float = 0.0  # the node itself said 429 or 503
    last_error: str | None = None
    in_flight_by_model: dict[ModelKey, int] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)  # what `tokens_per_second` was learned from
    speeds: Speeds = field(default_factory=Speeds)
