"""Workers in which one thing goes wrong, for tests of their head."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeError
from gpu_node.pipeline.orders import Load
from gpu_node.pipeline.stage_loop import StagePart
from gpu_node.pipeline.step_message import StepMessage
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from tests.gpu_node.pipeline.splits import SECONDS

POISON, HUGE = 7, 8


class UnableAtLoad(Worker):
    """Like these it answers orders; what is wrong is in their names."""

    error: type[NodeError] = ModelError

    def __init__(self, place: WorkerPlace) -> None:
        super().__init__(place)
        self.handlers[Load] = self._refuse

    def _refuse(self, order: Load) -> None:
        raise self.error("this is why")


class FailingAtLoad(UnableAtLoad):
    error = DeviceOutOfMemory


class DyingAtLoad(UnableAtLoad):
    def _refuse(self, order: Load) -> None:
        self.stop()


class Stumbling(Worker):
    """Its first stage does not bear certain tokens."""

    def __init__(self, place: WorkerPlace) -> None:
        super().__init__(place)
        usual = self.seating
        self.seating = lambda take, loaded: Stumbles(usual(take, loaded))


class Stumbles:
    def __init__(self, part: StagePart) -> None:
        self._part, self.device, self.close = part, part.device, part.close

    def compute(self, message: StepMessage, hidden: Tensor | None) -> Tensor:
        tokens = message.rows[0].tokens
        if hidden is None and tuple(tokens) == (POISON,):
            raise ValueError("this one is poisoned")
        if hidden is None and tuple(tokens) == (HUGE,):
            raise MemoryError
        return self._part.compute(message, hidden)


def held_at_load(loading: threading.Event, go_on: threading.Event) -> Callable[[WorkerPlace], Worker]:
    """A worker that waits before it loads anything."""

    def make(place: WorkerPlace) -> Worker:
        worker = Worker(place)
        usual = worker.handlers[Load]

        def held(order: Load) -> None:
            loading.set()
            assert go_on.wait(SECONDS)
            usual(order)

        worker.handlers[Load] = held
        return worker

    return make
