"""A model split over devices, as the engine sees it.

Must not know layers or how a worker computes.
"""

from __future__ import annotations

from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.step import StepByStep
from gpu_node.pipeline.split_model import USUAL_SPLIT, PlanDevices, SplitModel, SplitOptions


class SplitRunner(StepByStep):
    def __init__(
        self, model: SplitModel, fleet: DeviceFleet, plan: PlanDevices, options: SplitOptions = USUAL_SPLIT
    ) -> None:
        """Returns when the model runs. Raises `DoesNotFit`, `ModelError` and `DeviceOutOfMemory`, nothing left behind."""
        super().__init__()
        self._model, self._fleet, self._plan, self._options = model, fleet, plan, options

    def can_do_without(self, name: str) -> str | None:
        """From any thread: why that device cannot be missed, in one sentence; None where it can."""
        raise NotImplementedError
