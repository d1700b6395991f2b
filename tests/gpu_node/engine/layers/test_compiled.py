"""Compiled layers against transformers' forward of the same model, and against torch's way through the same layers."""

from dataclasses import replace

import pytest
import torch

from gpu_node.engine.batch import batch_of
from gpu_node.engine.chain import StageChain
from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.layers.part import COMPILED_TOKENS, LayeredPart
from gpu_node.engine.layers.stage import layered_stage
from gpu_node.engine.products.base import Numerics, QuantisedWeight
from gpu_node.engine.products.kernels.tensors import RoundingRoom
from gpu_node.engine.products.quantise import quantised_int4, quantised_int8
from gpu_node.engine.step import Row
from tests.fakes.tiny_families import tiny_family
from tests.gpu_node.engine.layers.model_source import ModelSource
from tests.gpu_node.engine.layers.test_stage import COVERED, plain_logits, prompt, same

BLOCK, BLOCKS = 8, 40
# Kernels work on eight numbers at a time, also on half a head.
OWN_HEADS = ("mistral", "qwen3", "gemma2", "gemma3")


def wide_model(family, **changes):
    heads = {"head_dim": 16} if family in OWN_HEADS else {}
    return tiny_family(family, hidden_size=64, **heads, **changes)


def staged(model, kernels, quantised=None, cache=None, **numerics):
    stage = layered_stage(ModelSource(model, quantised), Numerics(compiled=kernels, **numerics))
    assert isinstance(stage, StageChain)
    part = only_part(stage)
    part.bind(KvPool(stage.layer_shapes, BLOCK, BLOCKS, cache or stage.dtype))
    assert part.compiled
    return stage


def only_part(stage):
    (part,) = stage.parts
    assert isinstance(part, LayeredPart)
    return part


def row(ids, start, count, first_block=0, outputs=None):
    blocks = tuple(BLOCKS - 1 - first_block - at for at in range(-(-(start + count) // BLOCK)))
    return Row(0, ids[start : start + count], start, blocks, "logits", count if outputs is None else outputs)


@torch.inference_mode()
def forward(stage, *rows, want="logits"):
    return stage.forward(batch_of(rows, BLOCK), want)


@pytest.mark.parametrize("family", COVERED)
def test_pieces_beside_others_give_the_plain_logits(family, kernels):
    model = wide_model(family)
    stage = staged(model, kernels)
    long, short = prompt(23, seed=1), prompt(9, seed=2)
    first = forward(stage, row(long, 0, 9))
    mixed = forward(stage, row(short, 0, 4, first_block=16), row(long, 9, 1))
    last = forward(stage, row(long, 10, 13), row(short, 4, 5, first_block=16))
    same(torch.cat([first, mixed[4:], last[:13]]), plain_logits(model, long))
    same(torch.cat([mixed[:4], last[13:]]), plain_logits(model, short))


@pytest.mark.parametrize("family", COVERED)
def test_long_prompts_and_decodes_share_the_cache(family, kernels):
    """More tokens than a program takes go through torch; what they wrote, programs read, and the other way round."""
    model = wide_model(family)
    stage = staged(model, kernels)
    ids = prompt(COMPILED_TOKENS + 90, seed=3)
    wanted = plain_logits(model, ids)
    long = COMPILED_TOKENS + 5
    same(forward(stage, row(ids, 0, long)), wanted[:long])
    same(forward(stage, row(ids, long, 3, outputs=1)), wanted[long + 2 : long + 3])
    rest = len(ids) - long - 3
    assert rest > COMPILED_TOKENS
    same(forward(stage, row(ids, long + 3, rest)), wanted[long + 3 :])


def test_greedy_answers_are_those_of_generate(kernels):
    model = wide_model("llama")
    stage = staged(model, kernels)
    ids = prompt(11, seed=3)
    with torch.inference_mode():
        wanted = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0].tolist()
    written = list(ids)
    logits = forward(stage, row(written, 0, 11, outputs=1))
    while len(written) < len(wanted):
        written.append(int(logits[0].argmax()))
        logits = forward(stage, row(written, len(written) - 1, 1))
    assert written == wanted


def test_logits_outlive_the_next_forward(kernels):
    stage = staged(wide_model("llama"), kernels)
    ids = prompt(10, seed=4)
    for want in ("logits", "hidden"):
        kept = forward(stage, row(ids, 0, 10), want=want)
        before = kept.clone()
        forward(stage, row(ids[::-1], 0, 10, first_block=8), want=want)
        assert torch.equal(kept, before)


def test_a_middle_piece_answers_nothing(kernels):
    model = wide_model("llama")
    stage = staged(model, kernels)
    ids = prompt(14, seed=7)
    assert forward(stage, row(ids, 0, 8, outputs=0), want="nothing").shape[0] == 0
    same(forward(stage, row(ids, 8, 6)), plain_logits(model, ids)[8:])


def test_a_halved_cache_is_near(kernels):
    model = wide_model("llama")
    ids = prompt(30, seed=5)
    stage = staged(model, kernels, cache=torch.bfloat16)
    found, wanted = forward(stage, row(ids, 0, 30)), plain_logits(model, ids)
    assert 1e-5 < float((found - wanted).norm() / wanted.norm()) < 0.06


def test_16_bit_weights_lose_nothing(kernels):
    model, plain = wide_model("llama").bfloat16(), wide_model("llama")
    plain.load_state_dict(model.state_dict())
    ids = prompt(30, seed=5)
    stage = staged(model, kernels, cache=torch.float32)
    same(forward(stage, row(ids, 0, 30)), plain_logits(plain, ids))


@pytest.mark.parametrize("held_as", ["int8", "int4"])
def test_weights_are_quantised_when_asked(held_as, kernels):
    model = wide_model("llama", intermediate_size=96)  # kernels' groups have 32 columns
    stage = staged(model, kernels, held_as=held_as)
    # Kernels round activations to 8 bits as well; weights as wide as these tests' enlarge every error.
    limit = {"int8": 0.12, "int4": 0.6}[held_as]
    ids = prompt(30, seed=6)
    found, wanted = forward(stage, row(ids, 0, 30)), plain_logits(model, ids)
    assert 1e-4 < float((found - wanted).norm() / wanted.norm()) < limit
    assert any(held_as[3] in form for form in stage.holding.forms)


def test_mixed_types_of_one_product(kernels):
    model = wide_model("qwen2", intermediate_size=96)
    weights = model.state_dict()
    held = {
        name: (quantised_int8(weight, 32) if "v_proj" in name else quantised_int4(weight))
        for name, weight in weights.items()
        if "proj.weight" in name and weight.shape[1] % 32 == 0
    }
    stage = staged(model, kernels, quantised=held)
    model.load_state_dict(weights | {name: weight.dequantised() for name, weight in held.items()})
    ids = prompt(30, seed=6)
    found, wanted = forward(stage, row(ids, 0, 30)), plain_logits(model, ids)
    assert float((found - wanted).norm() / wanted.norm()) < 0.12


def test_what_has_no_kernel_runs_without(kernels):
    model = tiny_family("llama", num_attention_heads=8)  # half a head is two numbers
    stage = layered_stage(ModelSource(model), Numerics(compiled=kernels))
    assert isinstance(stage, StageChain)
    stage.take_cache(BLOCK, BLOCKS)
    assert not only_part(stage).compiled
    ids = prompt(12, seed=8)
    same(forward(stage, row(ids, 0, 12)), plain_logits(model, ids))


def test_programs_of_all_lengths_round_in_one_place(kernels):
    """With a place for each, sixty-four of them take more memory than the weights."""
    stage = staged(wide_model("llama", intermediate_size=64), kernels, held_as="int8")
    for count in (1, 2, 9, COMPILED_TOKENS):
        forward(stage, row(prompt(count, seed=8), 0, count))
    programs = only_part(stage)._compiled._programs.values()
    kept = (part for program in programs for operation in program._operations for part in operation.keeps)
    assert len({id(part) for part in kept if isinstance(part, RoundingRoom)}) == 1


def test_weights_with_scales_for_16_columns_are_compiled_too(kernels):
    """As in the files that people load most: Q4_K_M holds some of its matrices in Q6_K."""
    model = wide_model("llama", intermediate_size=64)
    name = "model.layers.0.mlp.down_proj.weight"
    given = model.state_dict()[name]
    scales = given.view(len(given), -1, 16).abs().amax(2) / 31
    codes = (given.view(len(given), -1, 16) / scales.unsqueeze(2)).round().to(torch.int8)
    weight = QuantisedWeight(codes.view(given.shape), scales, None, 16, 8, tuple(given.shape))
    ids = prompt(9, seed=9)
    found = forward(staged(model, kernels, {name: weight}), row(ids, 0, 9))
    model.load_state_dict({**model.state_dict(), name: weight.dequantised()})
    wanted = plain_logits(model, ids)
    assert float((found - wanted).norm() / wanted.norm()) < 0.04


@pytest.mark.parametrize("family", ["llama", "granite", "gemma3"])
def test_programs_and_torch_read_given_embeddings(family, kernels):
    """Few tokens run as a program, many do not."""
    model = wide_model(family)
    stage = staged(model, kernels)
    ids = prompt(COMPILED_TOKENS + 20, seed=4)
    with torch.inference_mode():
        vectors = model.get_input_embeddings()(torch.tensor(ids)).numpy()

    def part(start, count):
        return replace(row([0] * len(ids), start, count), vectors=vectors[start : start + count])

    found = [forward(stage, part(0, 9)), forward(stage, part(9, COMPILED_TOKENS + 2)), forward(stage, part(75, 9))]
    same(torch.cat(found), plain_logits(model, ids))
