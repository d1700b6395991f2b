"""Own layers against transformers' forward of the same model: the same logits, whatever the batch and the pieces."""

import pytest
import torch

from gpu_node.engine.batch import batch_of
from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.layers.recipe import NotCovered
from gpu_node.engine.layers.stage import layered_stage
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.quantise import quantised_int4, quantised_int8
from gpu_node.engine.step import Row
from tests.fakes.tiny_families import VOCABULARY, tiny_family
from tests.gpu_node.engine.layers.model_source import ModelSource

COVERED = [
    "llama",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen2-sliding",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "phi3",
    "gemma2",
    "gemma3",
]
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 10000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0},
}
BLOCK = 4
TORCH = Numerics(kernels="torch")


def staged(model, numerics=TORCH, quantised=None):
    stage = layered_stage(ModelSource(model, quantised), numerics)
    assert not isinstance(stage, NotCovered), stage
    stage.take_cache(BLOCK, 64)
    return stage


def rounded(family):
    """The same weights in bfloat16, and in single precision behind the plain path; its angles must not be rounded."""
    model, plain = tiny_family(family).bfloat16(), tiny_family(family)
    plain.load_state_dict(model.state_dict())
    return model, plain


def prompt(length, seed):
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def plain_logits(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.inference_mode()
def forward(stage, *rows, want="logits"):
    return stage.forward(batch_of(rows, BLOCK), want)


def row(ids, start, count, first_block=0, outputs=None):
    """`count` tokens of `ids` from `start` on, in blocks that lie backwards from the pool's end."""
    blocks = tuple(63 - first_block - at for at in range(-(-(start + count) // BLOCK)))
    return Row(0, ids[start : start + count], start, blocks, "logits", count if outputs is None else outputs)


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4 * float(wanted.std()))
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("family", COVERED)
def test_a_prompt_in_pieces_beside_others_gives_the_plain_logits(family):
    model = tiny_family(family)
    stage = staged(model)
    long, short = prompt(23, seed=1), prompt(9, seed=2)
    found_long = [forward(stage, row(long, 0, 9))]
    mixed = forward(stage, row(short, 0, 4, first_block=16), row(long, 9, 1))
    found_long.append(mixed[4:])
    last = forward(stage, row(long, 10, 13), row(short, 4, 5, first_block=16))
    found_long.append(last[:13])
    same(torch.cat(found_long), plain_logits(model, long))
    same(torch.cat([mixed[:4], last[13:]]), plain_logits(model, short))


@pytest.mark.parametrize("family", COVERED)
def test_greedy_answers_are_those_of_generate(family):
    model = tiny_family(family)
    stage = staged(model)
    ids = prompt(11, seed=3)
    with torch.inference_mode():
        wanted = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0].tolist()  # fmt: skip
    written = list(ids)
    logits = forward(stage, row(written, 0, 11, outputs=1))
    while len(written) < len(wanted):
        written.append(int(logits[0].argmax()))
        logits = forward(stage, row(written, len(written) - 1, 1))
    assert written == wanted


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scalings_are_those_of_transformers(scaling):
    model = tiny_family("llama", rope_parameters=SCALINGS[scaling])
    ids = prompt(40, seed=4)
    same(forward(staged(model), row(ids, 0, 40)), plain_logits(model, ids))


def test_partly_turned_heads():
    turning = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    model = tiny_family("phi3", rope_parameters=turning)
    ids = prompt(20, seed=5)
    same(forward(staged(model), row(ids, 0, 20)), plain_logits(model, ids))


def test_biases_everywhere():
    model = tiny_family("llama", attention_bias=True, mlp_bias=True)
    ids = prompt(20, seed=5)
    same(forward(staged(model), row(ids, 0, 20)), plain_logits(model, ids))


def test_hidden_states_are_those_after_the_last_norm():
    model = tiny_family("llama")
    ids = prompt(10, seed=6)
    with torch.inference_mode():
        wanted = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(forward(staged(model), row(ids, 0, 10), want="hidden"), wanted, rtol=1e-4, atol=1e-4)


def test_a_middle_piece_fills_the_cache_and_answers_nothing():
    model = tiny_family("llama")
    stage = staged(model)
    ids = prompt(14, seed=7)
    assert forward(stage, row(ids, 0, 8, outputs=0), want="nothing").shape[0] == 0
    same(forward(stage, row(ids, 8, 6)), plain_logits(model, ids)[8:])


def test_a_repeated_forward_gives_the_same():
    stage = staged(tiny_family("qwen3"))
    ids = prompt(14, seed=8)
    assert torch.equal(forward(stage, row(ids, 0, 14)), forward(stage, row(ids, 0, 14)))


def test_16_bit_weights_under_32_bit_numbers():
    model, plain = rounded("llama")
    stage = staged(model)
    ids = prompt(20, seed=9)
    stage.parts[0].bind(KvPool(stage.layer_shapes, BLOCK, 64, torch.float32))
    same(forward(stage, row(ids, 0, 20)), plain_logits(plain, ids))
    assert stage.dtype is torch.bfloat16
    assert "bfloat16, widened" in stage.holding.forms
    assert stage.holding.error is None


def test_16_bit_numbers_are_near():
    model, plain = rounded("gemma3")
    stage = staged(model, Numerics(torch.bfloat16, "torch"))
    ids = prompt(20, seed=9)
    found, wanted = forward(stage, row(ids, 0, 20)).float(), plain_logits(plain, ids)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_quantised_weights_equal_the_model_with_their_values():
    model = tiny_family("llama-tied", hidden_size=64, intermediate_size=96, vocab_size=208)
    weights = model.state_dict()
    held = {}
    for name, weight in weights.items():
        if "proj" in name:
            held[name] = (quantised_int8 if "v_proj" in name else quantised_int4)(weight)
    held["model.embed_tokens.weight"] = quantised_int8(weights["model.embed_tokens.weight"])
    stage = staged(model, quantised=held)
    model.load_state_dict(weights | {name: weight.dequantised() for name, weight in held.items()}, strict=False)
    model.tie_weights()
    ids = [token % 208 for token in prompt(20, seed=10)]
    found, wanted = forward(stage, row(ids, 0, 20)), plain_logits(model, ids)
    assert float((found - wanted).norm() / wanted.norm()) < 0.08
    assert any("int4" in form for form in stage.holding.forms)
    assert stage.holding.error < 0.02


def test_weights_are_quantised_when_asked():
    model = tiny_family("llama", hidden_size=64, intermediate_size=96)
    wide, narrow = staged(model), staged(model, Numerics(kernels="torch", held_as="int8"))
    ids = prompt(20, seed=11)
    found, wanted = forward(narrow, row(ids, 0, 20)), forward(wide, row(ids, 0, 20))
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    assert narrow.memory_bytes < 0.5 * wide.memory_bytes
    assert 0 < narrow.holding.error < 0.02


def test_a_layer_lies_in_one_piece():
    model = tiny_family("llama")
    source = ModelSource(model)
    stage = layered_stage(source, TORCH)
    assert not isinstance(stage, NotCovered)
    assert sorted(source.reads) == sorted(source.names())
    total = sum(weight.nbytes for name, weight in model.state_dict().items() if "norm" not in name)
    assert stage.memory_bytes == total
