"""What a split model tells of itself: its plan, its stages, the links between them, lent memory, and what happened.

Values only. Invariants: a value is whole and never changes, so that any thread may make one and any other read it;
sizes are bytes, times are seconds unless the name says otherwise, layers are counted from 0 and `behind_layer` is the
first that is not the stage's any more. Must not know torch, processes or HTTP; `pipeline_record` writes it as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

StageState = Literal["starting", "loading", "ready", "running", "lost", "stopping"]
PipelineState = Literal["running", "changing", "broken"]
EventKind = Literal["listed", "joined", "lost", "leaving", "left", "resized", "refused", "planned", "switched"]

_NONE: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage and the device it is on.

    `blocks` are those of its cache near at hand, `far_blocks` those that lie with a lender or in host memory. Bytes
    loaded and in all are those of a loading under way; both 0 while there is none.
    """

    number: int
    device: str
    kind: str
    first_layer: int
    behind_layer: int
    state: StageState
    pid: int | None = None  # none: in the node's own process
    weights_bytes: int = 0
    cache_bytes: int = 0
    budget_bytes: int | None = None  # none: whatever is free
    blocks: int = 0
    far_blocks: int = 0
    steps: int = 0
    busy_seconds: float = 0.0  # computing, since the stage took its part; a stated slow-down is part of it
    heard_seconds_ago: float | None = None
    loaded_bytes: int = 0
    total_bytes: int = 0
    hop_microseconds: float | None = None  # what its links take of a step, in software; none: no step yet

    @property
    def layers(self) -> int:
        return self.behind_layer - self.first_layer


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What a link of this epoch has carried from `source` to `target`: stages by number, or "head"."""

    source: str
    target: str
    frames: int = 0
    sent_bytes: int = 0  # of tensors, without headers
    dropped_frames: int = 0  # of an older epoch
    sending_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Blocks of the `holder`'s cache that lie in the `lender`'s memory; both are devices' names."""

    number: int
    lender: str
    holder: str
    blocks: int
    size_bytes: int
    priority: int
    age_seconds: float
    state: str


@dataclass(frozen=True, slots=True)
class LendingStatus:
    """`granted`, `reclaimed` and `refused` count leases, `moved_blocks` those that went to another place."""

    ratio: float  # of a device's memory, the most that is lent
    threshold: float  # of a device's memory in use, from which on reclaim begins
    lent_bytes: int = 0
    host_bytes: int = 0  # reclaimed blocks that host memory holds
    granted: int = 0
    reclaimed: int = 0
    refused: int = 0
    recomputed_blocks: int = 0
    moved_blocks: int = 0
    leases: tuple[LeaseStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """A model that runs over several devices.

    `plan` is `plan_picture.record_of` and `picture` its `plan_lines`. `error` is the sentence why it is broken.
    `hops` counts messages on the links of the ring: n + 1 a step of n stages, one of them the answer. `replans` counts
    how often a plan was thought over, the first time included. `depths_measured` is tokens per second by how many steps
    were under way.
    """

    model: str
    epoch: int
    state: PipelineState
    error: str = ""
    plan: Mapping[str, Any] | None = None
    depth: int = 1
    depths_measured: Mapping[int, float] = field(default_factory=lambda: _NONE)
    stages: tuple[StageStatus, ...] = ()
    lending: LendingStatus | None = None
    replans: int = 0
    steps: int = 0
    hops: int = 0
    predicted_step_seconds: float | None = None
    measured_step_seconds: float | None = None
    last_recovery_seconds: float | None = None
    picture: tuple[str, ...] = ()
    links: tuple[LinkStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened to a device, or to the plan because of one."""

    at: float  # seconds since 1970
    device: str
    what: EventKind
    detail: str = ""
