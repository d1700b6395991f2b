"""What a split model tells of itself while it runs, alone and over stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.devices import Device, parse_devices
from gpu_node.engine.chain import Holding
from gpu_node.engine.loader import PartOptions
from gpu_node.pipeline.one_device import inside_options
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.pipeline.splits import EXACT, fleet_of, split

PROMPT = list(range(30, 50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


def test_stages_as_they_are(folder: Path) -> None:
    with split(folder, (3, 1)) as (runner, fleet, _):
        greedy(runner, PROMPT, 5)
        status = runner.pipeline
        first, last = status.stages
        assert (status.model, status.epoch, status.state, status.error) == ("tiny", 1, "running", "")
        assert (first.device, first.first_layer, first.behind_layer, last.layers) == ("cpu:0", 0, 3, 1)
        assert [stage.state for stage in status.stages] == ["running", "running"]
        assert first.budget_bytes == 64 << 20 and first.blocks == last.blocks == runner.cache.block_count
        assert first.cache_bytes == 3 * last.cache_bytes > 0
        assert first.weights_bytes + last.weights_bytes == runner.memory_bytes == Holding(runner.summary["forms"]).bytes
        held = {one.name: one.held_bytes for one in fleet.devices}
        assert all(held[stage.device] > stage.weights_bytes + stage.cache_bytes for stage in status.stages)
        assert status.plan["devices"][1]["first_layer"] == 3 and any("cpu:1" in line for line in status.picture)
        assert status.steps == 5 and status.measured_step_seconds > 0 and status.predicted_step_seconds is None
        out, back = status.links
        assert (out.source, out.target, out.frames, back.source, back.target, back.frames) == (
            "head",
            "0",
            5,
            "1",
            "head",
            5,
        )


def test_one_device_is_told_of_as_one_stage(folder: Path) -> None:
    with split(folder, (4,), fleet=fleet_of(1, "64MiB@0.5")) as (runner, fleet, _):
        greedy(runner, PROMPT, 3)
        (stage,) = runner.pipeline.stages
        assert (stage.device, stage.pid, stage.first_layer, stage.behind_layer) == ("cpu:0", None, 0, LAYERS)
        assert stage.weights_bytes == runner.memory_bytes and stage.steps == 3 and runner.pipeline.hops == 0
        assert fleet.find("cpu:0").held_bytes == stage.weights_bytes + stage.cache_bytes


def test_one_device_is_loaded_within_its_budget_where_it_has_one() -> None:
    bounded, whole = parse_devices("cpu:1GiB,cuda:0")
    assert inside_options(EXACT, bounded, 4).parts == (PartOptions(4, 1 << 30, "cpu"),)
    free = inside_options(EXACT, whole, 4)
    assert (free.device, free.parts) == ("auto", ())
    second = inside_options(EXACT, Device("cuda:1", "cuda", 1), 4)
    assert second.parts == (PartOptions(4, None, "cuda:1"),)
    assert inside_options(EXACT, Device("rocm:1", "rocm", 1), 4).parts[0].device == "cuda:1"
