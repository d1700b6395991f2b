"""Linear modules whose weights are held by products: the same places, the same numbers up to the rounding told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.products.base import Numerics
from gpu_node.engine.weights.filling import empty_model, fill, slots_of, tie
from gpu_node.engine.weights.gguf_source import GgufSource
from gpu_node.engine.weights.linear import Held, ProductLinear, hold_linears, hold_tied_head
from gpu_node.engine.weights.views import SourceView
from tests.gpu_node.engine.weights.written_gguf import quantising, tiny_model, write_gguf

CPU = torch.device("cpu")
IDS = torch.arange(3, 43)[None]
EXACT = Numerics(kernels="torch")


def loaded(source: GgufSource, numerics: Numerics, dtype: torch.dtype, stored: bool = False) -> tuple[Any, Held]:
    view = SourceView(source, dtype, stored)
    model = empty_model(source.config, dtype, CPU)
    slots = slots_of(model, view)
    assert slots is not None
    held = hold_linears(model, slots, view, numerics)
    left = {id(module) for module in model.modules()}
    fill([slot for slot in slots if id(slot.module) in left], view, dtype, CPU)
    tie(model)
    hold_tied_head(model, numerics)
    return model, held


def off(model: Any, original: Any) -> float:
    with torch.inference_mode():
        found, expected = model(IDS).logits.float(), original(IDS).logits
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gptneox"])
def test_sixteen_bit_weights_under_wider_numbers(family: str, tmp_path: Path) -> None:
    original = tiny_model(family)
    source = GgufSource(write_gguf(original, family, tmp_path / "m.gguf"))
    model, held = loaded(source, EXACT, torch.bfloat16)
    assert (held.error, list(held.forms)) == (None, ["bfloat16, widened"])
    assert off(model, original) < 0.1
    linears = [module for module in model.modules() if isinstance(module, (ProductLinear, torch.nn.Linear))]
    assert all(isinstance(module, ProductLinear) for module in linears)
    source.close()


@pytest.mark.parametrize("how", ["stored", "int8", "int4"])
def test_quantised_weights_are_as_far_off_as_they_tell(how: str, tmp_path: Path) -> None:
    original = tiny_model("llama", hidden_size=64, intermediate_size=128, initializer_range=0.1)
    encode = quantising("Q8_0" if how == "stored" else "F32")
    source = GgufSource(write_gguf(original, "llama", tmp_path / "m.gguf", encode))
    numerics = EXACT if how == "stored" else replace(EXACT, held_as=how)  # type: ignore[arg-type]
    model, held = loaded(source, numerics, torch.float32, how == "stored")
    assert held.error is not None
    assert off(model, original) < {"stored": 0.05, "int8": 0.05, "int4": 0.4}[how]
    assert held.error < {"stored": 0.02, "int8": 0.02, "int4": 0.2}[how]
    whole = sum(parameter.nbytes for parameter in original.parameters())
    assert model.get_memory_footprint() < 0.6 * whole
    assert model.get_memory_footprint() == pytest.approx(
        sum(held.forms.values()) + sum(parameter.nbytes for parameter in model.parameters()), rel=0.05
    )
    source.close()


def test_a_layers_unquantised_matrices_share_a_buffer(tmp_path: Path) -> None:
    source = GgufSource(write_gguf(tiny_model("qwen2"), "qwen2", tmp_path / "m.gguf"))
    model, _ = loaded(source, EXACT, torch.bfloat16)
    for layer in model.model.layers:
        products: list[Any] = [module.product for module in layer.modules() if isinstance(module, ProductLinear)]
        assert len(products) == 7
        assert len({product._weight.untyped_storage().data_ptr() for product in products}) == 1
    source.close()
