"""A filled model has each weight once, layer by layer in one piece, and everything that no file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gpu_node.engine.weights.filling import (
    by_group,
    empty_model,
    fill,
    gather_layers,
    missing_from,
    slots_of,
    tie,
    unused_in,
)
from gpu_node.engine.weights.safetensors_source import SafetensorsSource
from gpu_node.errors import ModelError
from tests.gpu_node.engine.weights.written_gguf import FAMILIES, tiny_model

CPU = torch.device("cpu")


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    source = SafetensorsSource(folder)
    model = empty_model(source.config, dtype, CPU)
    slots = slots_of(model, source)
    assert slots is not None, missing_from(model, source)
    fill(slots, source, dtype, CPU)
    tie(model)
    source.close()
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_differs_from_what_transformers_loads(family: str, tmp_path: Path) -> None:
    """Buffers too, rotary frequencies for instance, which no file holds."""
    tiny_model(family).save_pretrained(tmp_path)
    found, expected = filled(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
            assert ours[name].dtype is tensor.dtype
    assert not found.training


def test_a_layer_lies_in_one_buffer_of_its_own(tmp_path: Path) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    check_buffers(filled(tmp_path, torch.bfloat16))


def check_buffers(model: Any) -> None:
    places: dict[int, set[int]] = {}
    for at, layer in enumerate(model.model.layers):
        storages = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        assert len(storages) == 1
        places.setdefault(storages.pop(), set()).add(at)
        used = sum(parameter.nbytes for parameter in layer.parameters())
        assert next(layer.parameters()).untyped_storage().nbytes() < used + 256 * len(list(layer.parameters()))
    assert len(places) == len(model.model.layers)


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_a_model_that_was_loaded_otherwise_is_gathered_without_change(family: str) -> None:
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gather_layers(model)
    check_buffers(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (family == "llama"), "the output layer is the embedding still"


def test_groups_are_layers_and_the_rest_by_module(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    source = SafetensorsSource(tmp_path)
    slots = slots_of(empty_model(source.config, torch.float32, CPU), source)
    assert slots is not None
    assert list(by_group(slots)) == [
        "transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f"
    ]  # fmt: skip
    source.close()


def test_what_a_source_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    source = SafetensorsSource(tmp_path)
    model = empty_model(source.config, torch.float32, CPU)
    slots = slots_of(model, source)
    assert slots is not None
    assert unused_in(slots[1:], source) == [slots[0].source_name]
    assert missing_from(model, source) == ""
    wider = empty_model(transformers.Qwen2Config(**{**source.config.to_dict(), "vocab_size": 65}), torch.float32, CPU)
    assert slots_of(wider, source) is None
    assert "has the shape [64, 32], and the model wants [65, 32]" in missing_from(wider, source)
    deeper = transformers.Qwen2Config(**{**source.config.to_dict(), "num_hidden_layers": 4, "layer_types": None})
    assert "holds no weight model.layers.3." in missing_from(empty_model(deeper, torch.float32, CPU), source)
    fill(slots[1:], source, torch.float32, CPU)
    with pytest.raises(ModelError, match="was not filled"):
        tie(model)
    source.close()
