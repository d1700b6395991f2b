"""A model over stages computes what it computes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.engine.loader import load_runner
from tests.fakes.greedy_steps import some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import LAYERS, divisions
from tests.gpu_node.pipeline.splits import EXACT, split

PROMPT = some_prompts(VOCABULARY, (21,), seed=8)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[int]:
    runner = load_runner(folder, EXACT)
    found = greedy(runner, PROMPT, 12)
    runner.close()
    return found


@pytest.mark.parametrize("counts", list(divisions(LAYERS)), ids=str)
def test_every_split_answers_as_one_device(folder: Path, alone: list[int], counts: tuple[int, ...]) -> None:
    with split(folder, counts) as (runner, fleet, threads):
        assert greedy(runner, PROMPT, 12) == alone
        assert len(threads.started) == (len(counts) if len(counts) > 1 else 0)
        assert {one.name for one in fleet.devices if one.held} == {f"cpu:{at}" for at in range(len(counts))}
