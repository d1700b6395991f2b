"""Every tensor has a place, and one without is refused by its name."""

from __future__ import annotations

import pytest

from gpu_node.engine.weights.gguf_names import origins
from gpu_node.errors import ModelError
from gpu_node.gguf_header import GgufHeader, GgufTensor

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2}


def header(architecture: str, **shapes: tuple[int, ...]) -> GgufHeader:
    tensors = tuple(GgufTensor(name.replace("__", "."), 0, shape, 0) for name, shape in shapes.items())
    return GgufHeader({"general.architecture": architecture}, {}, tensors)


def test_layouts_belong_to_architectures() -> None:
    names = {"blk__3__attn_q__weight": (32, 8), "blk__3__attn_k__weight": (16, 8), "blk__3__attn_v__weight": (16, 8)}
    llama = origins(header("llama", **names), CONFIG)
    query, key, value = (llama[f"model.layers.3.self_attn.{letter}_proj.weight"] for letter in "qkv")
    assert [(one.layout, one.heads) for one in (query, key, value)] == [("pairs", 4), ("pairs", 2), ("plain", 0)]
    assert all(one.layout == "plain" for one in origins(header("qwen2", **names), CONFIG).values())
    gemma = origins(header("gemma2", blk__0__post_ffw_norm__weight=(8,), token_embd__weight=(9, 8)), CONFIG)
    assert gemma["model.layers.0.post_feedforward_layernorm.weight"].offset == 1.0
    assert gemma["model.embed_tokens.weight"].offset == 0.0
    gpt2 = origins(header("gpt2", blk__0__ffn_up__weight=(24, 8), blk__0__ffn_up__bias=(24,)), CONFIG)
    assert gpt2["transformer.h.0.mlp.c_fc.weight"].shape == (8, 24)
    assert gpt2["transformer.h.0.mlp.c_fc.bias"].shape == (24,)


def test_factors_are_configuration_and_no_weights() -> None:
    assert origins(header("llama", rope_freqs__weight=(4,)), CONFIG) == {}


def test_experts_are_joined_or_refused() -> None:
    both = {"blk__0__ffn_gate_exps__weight": (4, 6, 8), "blk__0__ffn_up_exps__weight": (4, 6, 8)}
    found = origins(header("qwen3moe", **both), CONFIG)
    assert found["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 12, 8)
    with pytest.raises(ModelError, match="experts of layer 0 are not whole"):
        origins(header("qwen3moe", blk__0__ffn_gate_exps__weight=(4, 6, 8)), CONFIG)


@pytest.mark.parametrize("name", ["blk.0.ssm_in.weight", "blk.0.ffn_gate.3.weight", "something", "v.patch_embd.weight"])
def test_a_tensor_without_a_place_is_named(name: str) -> None:
    odd = GgufHeader({"general.architecture": "llama"}, {}, (GgufTensor(name, 0, (4, 4), 0),))
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        origins(odd, CONFIG)
