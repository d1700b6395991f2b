"""The plain stage against `generate` for every family, in batches, pieces and scattered blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu_node.engine.attention import AttentionTerms, PagedAttention, ReferenceAttention
from gpu_node.engine.batch import Batch, batch_of
from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.step import Row
from gpu_node.errors import ModelError
from tests.fakes.greedy_steps import BLOCK_TOKENS, Course, GreedySteps, generated, some_prompts
from tests.fakes.tiny_families import FAMILIES, LAYERS, VOCABULARY, tiny_family

COUNT = 14
LENGTHS = (1, 13, 30)  # the window of those that have one is 7
PROMPTS = some_prompts(VOCABULARY, LENGTHS)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model = tiny_family(name)
    expected = [generated(model, prompt, COUNT) for prompt in PROMPTS]
    assert len({token for answer in expected for token in answer}) > 12, "answers that do not vary prove little"
    stage = PlainStage(model, PagedAttention(), context=60)
    assert len(stage.layer_shapes) == LAYERS
    assert GreedySteps(stage).answers(PROMPTS, COUNT) == expected


@pytest.fixture(scope="module")
def llama() -> PlainStage:
    return PlainStage(tiny_family("llama"), PagedAttention())


@pytest.fixture(scope="module")
def llama_answers() -> list[list[int]]:
    model = tiny_family("llama")
    return [generated(model, prompt, COUNT) for prompt in PROMPTS]


@pytest.mark.parametrize("seed", range(6))
def test_pieces_and_neighbours_change_nothing(llama: PlainStage, llama_answers: list[list[int]], seed: int) -> None:
    steps = GreedySteps(llama, seed, longest_piece=(2, 5, 9, 17, 40, 3)[seed])
    assert steps.answers(PROMPTS * 2, COUNT) == llama_answers * 2


def test_the_reference_attention_gives_the_same_tokens(llama_answers: list[list[int]]) -> None:
    stage = PlainStage(tiny_family("llama"), ReferenceAttention())
    assert GreedySteps(stage).answers(PROMPTS, COUNT) == llama_answers


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_a_prefix_is_read_from_the_blocks_of_another_sequence(name: str) -> None:
    model = tiny_family(name)
    shared, ends = PROMPTS[2], some_prompts(VOCABULARY, (3, 9), seed=5)
    prompts = [shared + end for end in ends]
    expected = [generated(model, prompt, COUNT) for prompt in prompts]
    steps = GreedySteps(PlainStage(model, PagedAttention()))
    first = Course(list(shared), len(shared) + 2)
    steps.run([first])
    whole = len(shared) // BLOCK_TOKENS
    later = [
        Course(list(prompt), len(prompt) + COUNT, blocks=first.blocks[:whole], computed=whole * BLOCK_TOKENS)
        for prompt in prompts
    ]
    steps.run(later)
    assert [course.tokens[-COUNT:] for course in later] == expected


def test_a_block_that_another_one_left_poisoned_is_clean_again(llama: PlainStage) -> None:
    steps = GreedySteps(llama)
    before = steps.answers(PROMPTS, COUNT)
    steps.poison()
    assert steps.answers(PROMPTS, COUNT) == before


def test_rows_of_the_answer_are_those_asked_for(llama: PlainStage) -> None:
    llama.take_cache(BLOCK_TOKENS, 8)
    rows = [
        Row(0, PROMPTS[1][:6], 0, (3, 1), "logits", 6),
        Row(1, [9, 8, 7], 0, (5,)),
        Row(2, [4], 0, (2,), "logits", 1),
    ]
    with torch.inference_mode():
        logits = llama.forward(batch_of(rows, BLOCK_TOKENS), "logits")
        hidden = llama.forward(batch_of(rows, BLOCK_TOKENS), "hidden")
    assert logits.shape == (7, VOCABULARY) == (7, llama.vocabulary_size)
    assert hidden.shape == (7, llama.hidden_size)
    model = tiny_family("llama")
    given = torch.tensor([PROMPTS[1][:6]])
    with torch.inference_mode():
        torch.testing.assert_close(logits[:6], model(given).logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(hidden[:6], model.model(given).last_hidden_state[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[6:], model(torch.tensor([[4]])).logits[0], atol=1e-5, rtol=1e-4)


def test_a_step_that_only_fills_the_cache_answers_nothing(llama: PlainStage) -> None:
    llama.take_cache(BLOCK_TOKENS, 8)
    with torch.inference_mode():
        assert llama.forward(batch_of([Row(0, [1, 2, 3], 0, (6,))], BLOCK_TOKENS), "nothing").shape[0] == 0
    assert bool(torch.count_nonzero(llama.pools[0].keys(2)[6, :3]))


def test_long_frequencies_are_chosen_by_the_context_not_by_the_batch() -> None:
    model = tiny_family("phi3-long")
    prompt = some_prompts(VOCABULARY, (70,))[0]  # trained on 60
    expected = generated(model, prompt, COUNT)
    long = PlainStage(tiny_family("phi3-long"), PagedAttention(), context=200)
    assert GreedySteps(long).answers([prompt, PROMPTS[0]], COUNT)[0] == expected
    short = PlainStage(tiny_family("phi3-long"), PagedAttention(), context=60)
    assert GreedySteps(short).answers([prompt], COUNT)[0] != expected


class Forgetful:
    """Sees only the newest token of each row."""

    def attend(
        self, query: torch.Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms
    ) -> torch.Tensor:
        return PagedAttention().attend(query, layer, batch, pool, AttentionTerms(terms.scale, window=1))


def test_a_stage_whose_numbers_are_off_is_refused() -> None:
    with pytest.raises(ModelError, match="deviations off"):
        PlainStage(tiny_family("llama"), Forgetful())


@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen3-moe"])
def test_sixteen_bits_pass_the_proof(name: str) -> None:
    model: Any = tiny_family(name).to(torch.bfloat16)
    stage = PlainStage(model, PagedAttention(wide=True))
    assert stage.dtype is torch.bfloat16
    assert GreedySteps(stage).answers(PROMPTS[:1], 3)[0]


def test_a_closed_stage_holds_no_weights() -> None:
    import gc
    import weakref

    model = tiny_family("llama")
    kept = weakref.ref(model)
    stage = PlainStage(model, PagedAttention())
    del model
    stage.close()
    gc.collect()
    assert kept() is None
