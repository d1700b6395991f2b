"""Whatever the family and the type, a GGUF file fills the model that it was made from."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from gpu_node.engine.weights import source as source_module
from gpu_node.engine.weights.filling import empty_model, fill, slots_of, tie
from gpu_node.engine.weights.gguf_source import GgufSource, file_rows
from gpu_node.errors import ModelError
from tests.gpu_node.engine.weights.written_gguf import FAMILIES, quantising, tiny_model, write_gguf

CPU = torch.device("cpu")
IDS = torch.arange(3, 43)[None]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_gives_the_model_that_it_was_written_from(family: str, tmp_path: Path) -> None:
    """Names, layouts and configuration: a mistake in any of them changes the logits."""
    original = tiny_model(family)
    source = GgufSource(write_gguf(original, family, tmp_path / "m.gguf"))
    model = empty_model(source.config, torch.float32, CPU)
    slots = slots_of(model, source)
    assert slots is not None
    fill(slots, source, torch.float32, CPU)
    tie(model)
    source.close()
    with torch.inference_mode():
        expected, found = original(IDS).logits, model(IDS).logits
    # Norms of the Gemma kind are stored with 1 added, which costs their last bit.
    assert torch.allclose(found, expected, rtol=0, atol=float(expected.std()) * 1e-5)
    assert float(expected.std()) > 0.05


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_stored_types_are_read_and_handed_out(family: str, kind: str, tmp_path: Path) -> None:
    """Against the package's own dequantisation, rows turned back by hand for the family that turns them."""
    source = GgufSource(write_gguf(tiny_model(family), family, tmp_path / "m.gguf", quantising(kind)))
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for short, name in (("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")):
        tensor = reader[f"blk.1.{short}.weight"]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        if family == "llama" and short == "attn_q":
            expected = expected.reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32)
        path = f"model.layers.1.{name}.weight"
        found = torch.empty(source.shape(path))
        source.read_into(path, found)
        assert np.array_equal(found.numpy(), expected)
        weight = source.quantised(path)
        assert (weight is not None) == source.is_quantised(path) == kind.startswith("Q")
        if weight is not None:
            assert source.dtype(path) == kind
            assert np.array_equal(weight.dequantised().numpy(), expected)
    source.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_are_rounded_once_into_the_target(dtype: torch.dtype, tmp_path: Path) -> None:
    source = GgufSource(write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf", quantising("Q8_0")))
    name = "model.layers.0.self_attn.k_proj.weight"
    exact, rounded = torch.empty(source.shape(name)), torch.empty(source.shape(name), dtype=dtype)
    source.read_into(name, exact)
    source.read_into(name, rounded)
    assert torch.equal(rounded, exact.to(dtype))
    source.close()


def test_pieces_join_without_a_seam(tmp_path: Path) -> None:
    """Weights larger than the staging buffer: whole, turned, stacked and as codes."""
    wide = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 1}
    model = tiny_model("mixtral", intermediate_size=512, **wide)
    source = GgufSource(write_gguf(model, "mixtral", tmp_path / "m.gguf", quantising("Q8_0")))
    exact = GgufSource(write_gguf(model, "mixtral", tmp_path / "e.gguf"))
    names = ["self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    for name in (f"model.layers.0.{name}" for name in names):
        assert exact.file_bytes(name) > 2 * source_module.STAGING_BYTES
        found, wanted = torch.empty(source.shape(name)), model.get_parameter(name).detach()
        exact.read_into(name, found)
        assert torch.equal(found, wanted)
        source.read_into(name, found)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.01
        codes = source.quantised(name)
        assert codes is None or torch.equal(codes.dequantised(), found)
    source.close()
    exact.close()


def test_turned_rows_are_a_permutation_that_keeps_heads_apart() -> None:
    pairs, thirds = file_rows("pairs", 16, 2), file_rows("thirds", 24, 2)
    assert pairs is not None and thirds is not None
    assert pairs.tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert thirds.tolist() == [
        *range(0, 4),
        *range(8, 12),
        *range(16, 20),
        *range(4, 8),
        *range(12, 16),
        *range(20, 24),
    ]
    assert file_rows("plain", 16, 2) is None


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    source = GgufSource(write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has the shape \[32\], and the model wants \[31\]"):
        source.read_into("model.norm.weight", torch.empty(31))
    with pytest.raises(ModelError, match=r"cannot become torch\.int64"):
        source.read_into("model.norm.weight", torch.empty(32, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"m\.gguf holds no weight nothing"):
        source.read_into("nothing", torch.empty(1))
    source.close()


def test_a_file_that_shrinks_while_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    path = write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf")
    source = GgufSource(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 4)
    with pytest.raises(ModelError, match="ends in the middle of its weights"):
        for name in source.names():
            source.read_into(name, torch.empty(source.shape(name)))
    source.close()


def test_the_float_type_behind_the_codes(tmp_path: Path) -> None:
    model = tiny_model("llama")
    for kind, dtype in (
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("Q8_0", torch.bfloat16),
    ):
        source = GgufSource(write_gguf(model, "llama", tmp_path / f"{kind}.gguf", quantising(kind)))
        assert source.stored_dtype is dtype
        source.close()
