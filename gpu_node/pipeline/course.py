"""What a split model runs on and what is to become of it: the state that the pipeline's thread keeps. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_node.engine.step import CacheShape
from gpu_node.errors import NodeError
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.ring import Ring
from gpu_node.plan_picture import Picture
from gpu_node.split_plan import Plan


@dataclass(frozen=True, slots=True)
class Switch:
    """Another ring to go on with."""

    lineup: LineUp
    ring: Ring
    shape: CacheShape
    depth: int
    depths: Mapping[int, float] = field(default_factory=dict)  # tokens/s that were measured


@dataclass(slots=True)
class Course:
    """Written by the pipeline's thread, under the crew's condition; `inside` and `most_blocks` by the engine's."""

    plan: Plan | None = None  # that runs; None: none does
    picture: Picture | None = None  # of the last plan that ran
    lineup: LineUp | None = None
    ring: Ring | None = None
    inside: bool = False  # the plan runs in the engine's own process
    budgets: Mapping[str, int | None] = field(default_factory=dict)
    next: LineUp | None = None  # loaded, and waiting for the engine
    changing: bool = False  # something is being loaded
    broken: str = ""  # why nothing runs
    broken_at: float | None = None
    error: NodeError | None = None  # why there is nothing until the devices change
    epoch: int = 0
    replans: int = 0
    bad_rings: int = 0  # in a row, that could not be closed, or broke with all workers there
    taken_at: float = 0.0
    most_blocks: int | None = None
    seen: int = -1  # the fleet's epoch that plans were made for
    loss: str = ""  # the last one, for whoever asks why nothing fits

    @property
    def inside_devices(self) -> tuple[str, ...]:
        return tuple(stage.device for stage in self.plan.stages) if self.inside and self.plan is not None else ()

    @property
    def over(self) -> str:
        """Why the ring can carry no step any more; empty where it can, or there is none."""
        return "" if self.ring is None else self.ring.over

    def uses(self, name: str) -> bool:
        return self.lineup is not None and name in self.lineup.names
