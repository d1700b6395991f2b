"""Measuring how many steps a split model has under way, over real rings, is never at the model's cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from gpu_node.pipeline.stage_loop import StagePart
from gpu_node.pipeline.step_message import StepMessage
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.pipeline.splits import Threads, split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


class Narrow(Worker):
    """Steps of several rows are too much for it."""

    def __init__(self, place: WorkerPlace) -> None:
        super().__init__(place)
        usual = self.seating
        self.seating = lambda take, loaded: NarrowPart(usual(take, loaded))


class NarrowPart:
    def __init__(self, part: StagePart) -> None:
        self._part, self.device, self.close = part, part.device, part.close

    def compute(self, message: StepMessage, hidden: Tensor | None) -> Tensor:
        if len(message.rows) > 1:
            raise MemoryError
        return self._part.compute(message, hidden)


@pytest.mark.parametrize(("counts", "depth"), [((2, 2), 2), ((3, 1), 1), ((1, 2, 1), 2)])
def test_a_step_that_fails_while_it_is_measured_harms_nobody(folder: Path, counts: tuple[int, ...], depth: int) -> None:
    """The plan's times are in proportion to the layers."""
    with split(folder, counts, depth=0, threads=Threads(Narrow)) as (runner, _, __):
        assert runner.depth == depth and runner.pipeline.depths_measured == {}
        assert runner.pipeline.state == "running"
