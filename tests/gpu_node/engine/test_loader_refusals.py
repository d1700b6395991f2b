"""What cannot be loaded is refused in one sentence, before it is read where that is possible."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import (
    LoadOptions,
    check_room,
    choose,
    choose_device,
    load_runner,
)
from gpu_node.engine.products.kernels.availability import available, reason
from gpu_node.errors import DeviceOutOfMemory, ModelError

CACHE = CacheOptions(block_count=24)
CPU = LoadOptions(device="cpu", kernels="torch", cache=CACHE)  # compiling takes longer than these tests
EXACT = replace(CPU, dtype="float32")


def test_what_is_not_quantised_cannot_run_as_stored(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="no quantised weights"):
        load_runner(tiny_folder, replace(CPU, weights="stored"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        choose_device("cuda")


def test_a_model_larger_than_memory_is_refused_before_it_is_read() -> None:
    choices = choose(CPU, HugeAndPlain(), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(DeviceOutOfMemory, match=r"huge does not fit into memory: it takes \d+\.\d GB and"):
        check_room(HugeAndPlain(), choices)  # type: ignore[arg-type]


def test_types_that_are_held_wider_than_in_their_file_count_so() -> None:
    choices = choose(CPU, HugeAndQuantised(), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(DeviceOutOfMemory, match=r"it takes 1374\.4 GB"):  # 1.25 bytes a weight
        check_room(HugeAndQuantised(), choices)  # type: ignore[arg-type]


class HugeAndPlain:
    label = "huge"
    stored_dtype = torch.float32

    def names(self) -> list[str]:
        return ["w"]

    def shape(self, name: str) -> tuple[int, ...]:
        return (1 << 24, 1 << 24)

    def is_quantised(self, name: str) -> bool:
        return False


def test_a_cache_without_room_leaves_no_threads_behind(tiny_folder: Path) -> None:
    if not available():
        pytest.skip(reason())
    before, threads = torch.get_num_threads(), threading.active_count()
    options = replace(CPU, kernels="compiled", threads=2, cache=CacheOptions(block_count=1 << 50))
    try:
        with pytest.raises(DeviceOutOfMemory):
            load_runner(tiny_folder, options)
        assert threading.active_count() == threads
    finally:
        torch.set_num_threads(before)


def test_compiled_kernels_that_a_model_cannot_have_are_not_left_out_silently(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot run by compiled kernels, only by transformers' own modules: asked"):
        load_runner(tiny_folder, replace(CPU, kernels="compiled", layers="plain"))


class HugeAndQuantised(HugeAndPlain):
    stored_dtype = torch.bfloat16

    def shape(self, name: str) -> tuple[int, ...]:
        return (1 << 20, 1 << 20)

    def is_quantised(self, name: str) -> bool:
        return True

    def dtype(self, name: str) -> str:
        return "Q5_K"

    def file_bytes(self, name: str) -> int:
        return (1 << 40) * 176 // 256


def test_what_cannot_be_loaded_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "odd")
    change(tmp_path / "odd", model_type="no_such_model")
    with pytest.raises(ModelError, match="odd cannot be loaded") as caught:
        load_runner(tmp_path / "odd", CPU)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_run_is_refused_with_the_reason(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "both-ways")
    change(tmp_path / "both-ways", is_encoder_decoder=True)
    with pytest.raises(ModelError, match="both-ways cannot run here: it has an encoder"):
        load_runner(tmp_path / "both-ways", CPU)


def test_weights_that_a_library_quantised_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "awq")
    change(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ModelError, match="awq is quantised by awq, which is not supported"):
        load_runner(tmp_path / "awq", CPU)


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_more_layers_than_weights_are_refused_before_they_are_made(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tall")
    change(tmp_path / "tall", num_hidden_layers=10**9, layer_types=None)
    with pytest.raises(ModelError, match="tall speaks of 1000000000 layers and holds"):
        load_runner(tmp_path / "tall", CPU)


def test_broken_weights_are_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "torn")
    weights = tmp_path / "torn/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_runner(tmp_path / "torn", CPU)


@pytest.mark.parametrize("layers", ["auto", "plain"])
def test_weights_that_are_missing_too_many_or_misshapen_are_refused(
    tiny_folder: Path, tmp_path: Path, layers: Any
) -> None:
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.up_proj.weight"
    whole = load_file(tiny_folder / "model.safetensors")
    wrongs = {
        "missing": {key: value for key, value in whole.items() if key != name},
        "misshapen": whole | {name: whole[name][:-1].clone()},
        "surplus": whole | {"model.layers.1.mlp.extra_proj.weight": whole[name].clone()},
    }
    for word, tensors in wrongs.items():
        folder = shutil.copytree(tiny_folder, tmp_path / word)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError):
            load_runner(folder, replace(EXACT, layers=layers))


def test_pickles_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "p", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="can run any code"):
        load_runner(folder, CPU)


def test_code_that_comes_with_a_model_is_never_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own-code"
    shutil.copytree(tiny_folder, folder)
    change(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="own-code cannot be loaded"):
        load_runner(folder, CPU)
    assert not (tmp_path / "ran").exists()
