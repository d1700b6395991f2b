"""Safetensors are read into place in every type, and files that lie about themselves are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpu_node.engine.weights.safetensors_source import SafetensorsSource, read_tensors
from gpu_node.engine.weights.source import STAGING_BYTES, WeightFile
from gpu_node.errors import ModelError
from tests.fakes.tiny_model import tiny_config


def source_of(folder: Path, tensors: dict[str, torch.Tensor]) -> SafetensorsSource:
    tiny_config().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsSource(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_is_read_into_every_other(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(7, 5).to(stored)
    source = source_of(tmp_path, {"w": weight, "scalar": torch.tensor(3.0).to(stored)})
    target, scalar = torch.empty(7, 5, dtype=wanted), torch.empty((), dtype=wanted)
    source.read_into("w", target)
    source.read_into("scalar", scalar)
    assert torch.equal(target, weight.to(wanted))
    assert float(scalar) == 3.0
    assert (source.shape("w"), source.file_bytes("w")) == ((7, 5), 35 * stored.itemsize)
    source.close()


def test_rows_of_a_larger_buffer_and_columns_may_be_targets(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    source = source_of(tmp_path, {"w": weight})
    rows, columns = torch.zeros(10, 6), torch.zeros(4, 20)
    source.read_into("w", rows[3:7])
    source.read_into("w", columns[:, 2:8])
    assert torch.equal(rows[3:7], weight) and torch.equal(columns[:, 2:8], weight)
    assert float(rows[:3].abs().sum() + rows[7:].abs().sum() + columns[:, 8:].abs().sum()) == 0
    source.close()


def test_pieces_join_without_a_seam(tmp_path: Path) -> None:
    count = STAGING_BYTES // 2 + 12_345
    weight = torch.randn(count).bfloat16()
    source = source_of(tmp_path, {"w": weight})
    target = torch.empty(count)
    source.read_into("w", target)
    assert torch.equal(target, weight.float())
    source.close()


def test_experts_are_offered_as_stacks(tmp_path: Path) -> None:
    parts = {
        f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": torch.randn((8, 6) if part == "down" else (6, 8))
        for expert in range(3)
        for part in ("gate", "up", "down")
    }
    source = source_of(tmp_path, parts)
    place = "model.layers.0.mlp.experts"
    assert sorted(source.names()) == [f"{place}.down_proj", f"{place}.gate_up_proj"]
    both, down = torch.empty(3, 12, 8), torch.empty(3, 8, 6)
    source.read_into(f"{place}.gate_up_proj", both)
    source.read_into(f"{place}.down_proj", down)
    for expert in range(3):
        gate, up = parts[f"{place}.{expert}.gate_proj.weight"], parts[f"{place}.{expert}.up_proj.weight"]
        assert torch.equal(both[expert], torch.cat([gate, up]))
        assert torch.equal(down[expert], parts[f"{place}.{expert}.down_proj.weight"])
    assert source.file_bytes(f"{place}.gate_up_proj") == both.nbytes
    assert source.dtype(f"{place}.down_proj") == "F32"
    source.close()


def test_types_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"w": torch.zeros(4, dtype=torch.int32)})
    with pytest.raises(ModelError, match="w is stored as I32, which is not supported"):
        source.read_into("w", torch.empty(4))
    assert source.quantised("w") is None
    source.close()


def raw_file(folder: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"w": entry(0, 32, [8])}, "reaches beyond its end"),
        ({"w": entry(8, 4, [1])}, "reaches beyond its end"),
        ({"w": entry(0, 8, [1])}, r"has 8 bytes for the shape \[1\]"),
        ({"w": entry(0, 16, [1 << 60, 1 << 60])}, "bytes for the shape"),
        ({"w": entry(-4, 0, [1])}, "no proper place"),
        ({"w": entry(0, 4, [1]), "v": entry(2, 6, [1])}, "overlap"),
        ({"w": {"dtype": "F32"}}, "data_offsets"),
        ({"w": 3}, "not a whole safetensors file"),
        ([], "no object"),
    ],
)
def test_places_are_not_believed(header: Any, told: str, tmp_path: Path) -> None:
    with WeightFile(raw_file(tmp_path, header)) as file, pytest.raises(ModelError, match=told):
        read_tensors(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes_give_only_our_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "random").write_bytes(data)
    with WeightFile(tmp_path / "random") as file, pytest.raises(ModelError):
        read_tensors(file)


def test_files_are_closed_when_one_of_them_is_wrong(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    raw_file(tmp_path, {"w": entry(0, 32, [8])})
    with pytest.raises(ModelError, match="reaches beyond"):
        SafetensorsSource(tmp_path)
