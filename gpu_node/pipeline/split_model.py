"""What a split model is made from, and how its pipeline behaves. Values only.

`LoadOptions` are those of one device without parts: every stage loads with them, on its own device and within its own
budget, and their cache says the block size and what is wanted at most. Must not know processes, sockets or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_node.devices import Device
from gpu_node.memory.lending_policy import USUAL_POLICY, LendingPolicy
from gpu_node.plan_picture import Picture
from gpu_node.split_plan import ModelShape

if TYPE_CHECKING:  # its module is torch's
    from gpu_node.engine.loader import LoadOptions

# Which of these devices hold what; raises `DoesNotFit`. From any thread, and it must not touch a device.
PlanDevices = Callable[[Sequence[Device]], Picture]


@dataclass(frozen=True, slots=True)
class SplitModel:
    """`folder` as for `model_files`. `paces_measured`: seconds of plans are seconds, not only in proportion."""

    folder: Path
    shape: ModelShape
    options: LoadOptions
    paces_measured: bool = False


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Times are bounds: what takes longer is given up, with its worker."""

    depth: int = 0  # steps under way at once; 0: as many as prove worth it
    silence_seconds: float = 0.4  # of a worker that says and computes nothing until it counts as frozen
    loading_silence_seconds: float = 5.0  # while it loads or computes: a long call may hold its interpreter
    start_seconds: float = 90.0  # until a worker says that it is there; importing torch takes seconds
    stall_seconds: float = 120.0  # without a byte more while it loads
    take_seconds: float = 30.0  # to make the cache and the links of an epoch
    stop_seconds: float = 2.0  # until a worker that was told to end is made to
    lending: LendingPolicy | None = USUAL_POLICY  # None: stages that are short borrow nothing

    def __post_init__(self) -> None:
        times = (self.silence_seconds, self.loading_silence_seconds, self.start_seconds, self.stall_seconds)
        if self.depth < 0 or min(*times, self.take_seconds, self.stop_seconds) <= 0:
            raise ValueError("times of a pipeline are positive, and its depth is not negative")


USUAL_SPLIT = SplitOptions()
