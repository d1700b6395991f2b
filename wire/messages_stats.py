"""What a node tells of itself: its models, who is resident, its devices, and who holds their memory.

Invariants: a holder is named by a session's small number or a model's name, never by a key; an answer fits one frame,
so a node with more than fits leaves the last ones out. Must not know how anything is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wire.kinds import Listing, Nested, Perhaps, Real, Text, Unsigned
from wire.messages_work import OPTIONS, Count, Model, Size
from wire.scalars import NamedValues, Table

__all__ = [
    "DEVICES",
    "EVENTS",
    "HOLDERS",
    "MODELS",
    "RESIDENTS",
    "STAGES",
    "STATISTICS",
    "WORD_BYTES",
    "DeviceRecord",
    "EventRecord",
    "HolderRecord",
    "ModelRecord",
    "PipelineRecord",
    "ResidentRecord",
    "StageRecord",
    "Stats",
    "Word",
]

STATISTICS = 1024
MODELS = 4096
RESIDENTS = 1024
DEVICES = 256
HOLDERS = 4096  # as many sessions and models as any node has at once
STAGES = 1024  # of all models that are split
EVENTS = 64  # the latest
WORD_BYTES = 64  # "Q4_K_M", "cuda:0", "134.5M": what a program compares and a person reads

Word = Annotated[str, Text(WORD_BYTES)]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model in the node's store; what is not known is empty or 0."""

    name: Model
    digest: Annotated[str, Text(128)] = ""
    size_bytes: Size = 0
    format: Word = ""
    family: Word = ""
    parameter_size: Word = ""
    quantisation: Word = ""
    modified_s: Annotated[float, Real(least=0.0)] = 0.0
    context_tokens: Count = 0
    capabilities: Annotated[tuple[str, ...], Listing(Text(WORD_BYTES, least=1), 32)] = ()
    parameters: Annotated[Table, NamedValues(OPTIONS)] = ()


@dataclass(frozen=True, slots=True)
class ResidentRecord:
    """A model that holds memory of a device now. `seconds_left` absent: it stays for ever."""

    model: Model
    state: Word
    context_tokens: Count = 0
    device_bytes: Size = 0
    cache_bytes: Size = 0
    slots: Count = 0
    running: Count = 0
    waiting: Count = 0
    seconds_left: Annotated[float | None, Perhaps(Real(least=0.0))] = None
    device: Word = ""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device. `claimed_bytes` is what models and sessions of the node hold of it."""

    name: Annotated[str, Text(128, least=1)]
    kind: Word
    total_bytes: Size = 0
    free_bytes: Size = 0
    claimed_bytes: Size = 0


@dataclass(frozen=True, slots=True)
class HolderRecord:
    """Who holds memory: `owner` is "session 3" or a model's name, `what` is "model" or "buffers"."""

    owner: Annotated[str, Text(512, least=1)]
    what: Word
    bytes: Size = 0
    state: Word = ""


@dataclass(frozen=True, slots=True)
class PipelineRecord:
    """A model that is split over several devices, as a whole. What was not measured is absent."""

    model: Model
    state: Word
    epoch: Count = 0
    error: Annotated[str, Text(512)] = ""
    depth: Count = 1
    replans: Size = 0
    steps: Size = 0
    hops: Size = 0
    step_seconds: Annotated[float | None, Perhaps(Real(least=0.0))] = None
    predicted_seconds: Annotated[float | None, Perhaps(Real(least=0.0))] = None
    recovery_seconds: Annotated[float | None, Perhaps(Real(least=0.0))] = None
    leases: Count = 0
    lent_bytes: Size = 0
    host_bytes: Size = 0
    reclaimed: Size = 0
    refused: Size = 0


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A part of a split model on one device: layers from 0, `behind_layer` is the first that is not its any more.

    A record without layers is a device of the split that computes none; `budget_bytes` absent: whatever is free."""

    model: Model
    stage: Count
    device: Annotated[str, Text(128, least=1)]
    kind: Word
    state: Word
    first_layer: Count = 0
    behind_layer: Count = 0
    weights_bytes: Size = 0
    cache_bytes: Size = 0
    step_bytes: Size = 0
    lent_bytes: Size = 0
    borrowed_bytes: Size = 0
    budget_bytes: Annotated[int | None, Perhaps(Unsigned())] = None
    loaded_bytes: Size = 0
    total_bytes: Size = 0
    steps: Size = 0
    busy_seconds: Annotated[float, Real(least=0.0)] = 0.0
    hop_microseconds: Annotated[float | None, Perhaps(Real(least=0.0))] = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """What happened to a device, or to a plan because of one; `at_s` is seconds since 1970."""

    at_s: Annotated[float, Real(least=0.0)]
    device: Annotated[str, Text(128)]
    what: Word
    detail: Annotated[str, Text(256)] = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Asks (empty), and answers: names with values, then what there are several of."""

    values: Annotated[Table, NamedValues(STATISTICS)] = ()
    models: Annotated[tuple[ModelRecord, ...], Listing(Nested(ModelRecord), MODELS)] = ()
    residents: Annotated[tuple[ResidentRecord, ...], Listing(Nested(ResidentRecord), RESIDENTS)] = ()
    devices: Annotated[tuple[DeviceRecord, ...], Listing(Nested(DeviceRecord), DEVICES)] = ()
    holders: Annotated[tuple[HolderRecord, ...], Listing(Nested(HolderRecord), HOLDERS)] = ()
    pipelines: Annotated[tuple[PipelineRecord, ...], Listing(Nested(PipelineRecord), RESIDENTS)] = ()
    events: Annotated[tuple[EventRecord, ...], Listing(Nested(EventRecord), EVENTS)] = ()
    stages: Annotated[tuple[StageRecord, ...], Listing(Nested(StageRecord), STAGES)] = ()
