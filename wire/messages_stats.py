"""What a node tells of itself: its models, who is resident, its devices, and who holds their memory.

Invariants: a holder is named by a session's small number or a model's name, never by a key; an answer fits one frame,
so a node with more than fits leaves the last ones out. Must not know how anything is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wire.kinds import Listing, Nested, Perhaps, Real, Text
from wire.messages_work import OPTIONS, Count, Model, Size
from wire.scalars import NamedValues, Table

__all__ = [
    "DEVICES",
    "HOLDERS",
    "MODELS",
    "RESIDENTS",
    "STATISTICS",
    "WORD_BYTES",
    "DeviceRecord",
    "HolderRecord",
    "ModelRecord",
    "ResidentRecord",
    "Stats",
    "Word",
]

STATISTICS = 1024
MODELS = 4096
RESIDENTS = 1024
DEVICES = 256
HOLDERS = 4096  # as many sessions and models as any node has at once
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
class Stats:
    """Asks (empty), and answers: names with values, then what there are several of."""

    values: Annotated[Table, NamedValues(STATISTICS)] = ()
    models: Annotated[tuple[ModelRecord, ...], Listing(Nested(ModelRecord), MODELS)] = ()
    residents: Annotated[tuple[ResidentRecord, ...], Listing(Nested(ResidentRecord), RESIDENTS)] = ()
    devices: Annotated[tuple[DeviceRecord, ...], Listing(Nested(DeviceRecord), DEVICES)] = ()
    holders: Annotated[tuple[HolderRecord, ...], Listing(Nested(HolderRecord), HOLDERS)] = ()
