"""A model's bytes layer by layer: nothing is lost between the stages, whatever the names and the way of holding it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.errors import ModelError
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription, Tensor
from gpu_node.model_shape import shape_of, stored_bytes
from gpu_node.vram import WIDENED_BYTES
from tests.gpu_node.serving import DESCRIPTION

CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "vocab_size": 32,
}


def model(*tensors: Tensor, quantisation: str = "BF16") -> ModelDescription:
    return replace(DESCRIPTION, config=CONFIG, embedding_length=8, quantisation=quantisation, tensors=tensors)


def named(embedding: str, layer: str, norm: str, head: str | None, dtype: str = "BF16") -> list[Tensor]:
    tensors = [Tensor(embedding, dtype, (32, 8)), Tensor(norm, dtype, (8,))]
    tensors += [Tensor(layer.format(number), dtype, (8, 8 * (number + 1))) for number in range(2)]
    return tensors + ([Tensor(head, dtype, (32, 8))] if head else [])


@pytest.mark.parametrize(
    "names",
    [
        ("model.embed_tokens.weight", "model.layers.{}.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"),
        ("transformer.wte.weight", "transformer.h.{}.attn.c_attn.weight", "transformer.ln_f.weight", "lm_head.weight"),
        ("token_embd.weight", "blk.{}.ffn_up.weight", "output_norm.weight", "output.weight"),
        (
            "gpt_neox.embed_in.weight",
            "gpt_neox.layers.{}.mlp.w.weight",
            "gpt_neox.final_layer_norm.weight",
            "embed_out.weight",
        ),
    ],
)
def test_every_byte_belongs_to_a_layer_or_an_end(names):
    described = model(*named(*names))
    shape = shape_of("m", described, LoadWish())
    assert [layer.weights_bytes for layer in shape.layers] == [128, 256]
    assert (shape.embedding_bytes, shape.head_bytes, shape.tied) == (512, 16 + 512, False)
    assert shape.weights_bytes == sum(map(stored_bytes, described.tensors))
    assert (shape.hidden_size, shape.vocabulary) == (8, 32)


def test_without_a_head_of_its_own_the_embedding_is_also_the_head():
    names = ("token_embd.weight", "blk.{}.ffn_up.weight", "output_norm.weight", None)
    shape = shape_of("m", model(*named(*names)), LoadWish())
    assert shape.tied and shape.head_bytes == 512 + 16
    assert shape.weights_bytes == 128 + 256 + 528


def test_tokens_of_the_cache_are_shared_out_over_the_layers():
    names = ("token_embd.weight", "blk.{}.ffn_up.weight", "output_norm.weight", None)
    shape = shape_of("m", model(*named(*names)), LoadWish())
    assert [layer.cache_token_bytes for layer in shape.layers] == [2 * 2 * 2 * 2] * 2  # K and V, heads, size, bytes


def test_weights_are_counted_as_they_are_held():
    names = ("token_embd.weight", "blk.{}.ffn_up.weight", "output_norm.weight", None)
    quantised = model(*named(*names, dtype="Q4_0"), quantisation="Q4_0")
    layer = {
        wish.weights + wish.dtype: shape_of("m", quantised, wish).layers[0].weights_bytes
        for wish in (
            LoadWish(),
            LoadWish(weights="full"),
            LoadWish(weights="int8"),
            LoadWish(weights="full", dtype="float32"),
        )
    }
    assert layer == {"autoauto": 2 * 18, "fullauto": 128, "int8auto": 68, "fullfloat32": 256}


def test_towers_for_images_are_not_counted():
    names = ("model.embed_tokens.weight", "model.layers.{}.w.weight", "model.norm.weight", "lm_head.weight")
    plain = named(*names)
    tower = [
        Tensor("vision_tower.encoder.layers.0.w.weight", "BF16", (999, 999)),
        Tensor("visual.blocks.7.w", "F32", (9,)),
    ]
    assert shape_of("m", model(*plain, *tower), LoadWish()) == shape_of("m", model(*plain), LoadWish())


def test_names_that_tell_no_layers_are_refused():
    with pytest.raises(ModelError, match="do not tell its layers"):
        shape_of("m", model(Tensor("w", "BF16", (2,))), LoadWish())
    with pytest.raises(ModelError, match="do not tell its layers"):
        shape_of("m", model(Tensor("blk.1.w", "BF16", (2,))), LoadWish())


def test_an_unknown_type_is_refused():
    with pytest.raises(ModelError, match="unknown type"):
        stored_bytes(Tensor("w", "Q9_9", (32,)))


def test_codes_that_are_held_wider_than_they_are_stored_are_counted_so():
    names = ("token_embd.weight", "blk.{}.ffn_up.weight", "output_norm.weight", None)
    tensors = [Tensor(one.name, "Q4_K", tuple(32 * size for size in one.shape)) for one in named(*names)]
    shape = shape_of("m", model(*tensors, quantisation="Q4_K_M"), LoadWish())
    assert shape.layers[0].weights_bytes == int(256 * 256 * WIDENED_BYTES["Q4_K"]) > stored_bytes(tensors[2])
