"""Embeddings in place of tokens: those of ids give the logits of these ids, in pieces, beside others, over and over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.batch import batch_of
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.sequence import (
    Bounds,
    GenerationRequest,
    Inference,
    InferenceRequest,
    InputVectors,
    SamplingOptions,
    Token,
    TokenPrompt,
)
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.step import Row
from gpu_node.errors import ContextExceeded, RequestError
from tests.fakes.tiny_families import FAMILIES, tiny_family
from tests.gpu_node.engine.layers.test_stage import COVERED, plain_logits, prompt, same, staged

BLOCK = 4
IDS, OTHERS = prompt(23, seed=1), prompt(9, seed=2)
TINY = LoadOptions(device="cpu", kernels="torch", dtype="float32", cache=CacheOptions(block_count=24))


@torch.inference_mode()
def given(model: Any, ids: list[int]) -> Any:
    """What transformers would take as `inputs_embeds` for these ids."""
    return model.get_input_embeddings()(torch.tensor(ids)).numpy()


def row(ids: list[int], start: int, count: int, vectors: Any = None, first_block: int = 0) -> Row:
    blocks = tuple(63 - first_block - at for at in range(-(-(start + count) // BLOCK)))
    tokens, part = ids[start : start + count], None
    if vectors is not None:
        tokens, part = [0] * count, vectors[start : start + count]
    return Row(0, tokens, start, blocks, "logits", count, part)


@torch.inference_mode()
def forward(stage: Any, *rows: Row) -> torch.Tensor:
    return stage.forward(batch_of(rows, BLOCK), "logits").float()


def in_pieces(stage: Any, vectors: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The long text by its embeddings, the short one by ids beside it."""
    first = forward(stage, row(IDS, 0, 9, vectors))
    mixed = forward(stage, row(OTHERS, 0, 4, first_block=16), row(IDS, 9, 1, vectors))
    last = forward(stage, row(IDS, 10, 13, vectors), row(OTHERS, 4, 5, first_block=16))
    return torch.cat([first, mixed[4:], last[:13]]), torch.cat([mixed[:4], last[13:]])


@pytest.mark.parametrize("family", COVERED)
def test_own_layers_read_them_as_transformers_does(family: str) -> None:
    model = tiny_family(family)
    by_vectors, by_ids = in_pieces(staged(model), given(model, IDS))
    same(by_vectors, plain_logits(model, IDS))
    same(by_ids, plain_logits(model, OTHERS))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in COVERED])
def test_plain_models_do_too(family: str) -> None:
    model = tiny_family(family)
    vectors = given(model, IDS)
    expected = [plain_logits(model, ids) for ids in (IDS, OTHERS)]
    stage = PlainStage(model, PagedAttention(), context=60)
    stage.take_cache(BLOCK, 64)
    by_vectors, by_ids = in_pieces(stage, vectors)
    same(by_vectors, expected[0])
    same(by_ids, expected[1])


@asynccontextmanager
async def engine_of(folder: Path, layers: Any = "auto", **options: Any) -> AsyncIterator[tuple[Engine, Any]]:
    """And the table of embeddings."""
    from transformers import AutoModelForCausalLM

    table = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings()
    engine = Engine(lambda: load_runner(folder, replace(TINY, layers=layers)), options=EngineOptions(**options))
    await engine.load()
    try:
        yield engine, table.weight.detach().numpy()
    finally:
        assert await engine.close()


def vectors_of(array: Any) -> InputVectors:
    return InputVectors(np.ascontiguousarray(array, "<f4").tobytes(), array.shape)


def numbers(found: Inference) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(found.data, "<f4").reshape(found.shape).copy())


async def infer(engine: Engine, ids: Any = (), array: Any = None, **more: Any) -> torch.Tensor:
    embeddings = None if array is None else vectors_of(array)
    return numbers(await engine.infer(InferenceRequest(tuple(ids), embeddings=embeddings, **more)))


@pytest.mark.parametrize("layers", ["auto", "plain"])
async def test_an_engine_gives_the_same_for_embeddings_and_ids_beside_other_requests(
    tiny_folder: Path, layers: Any
) -> None:
    async with engine_of(tiny_folder, layers, step_tokens=7, mixed_step_tokens=5) as (engine, table):
        ids = [at * 7 % len(table) for at in range(3, 40)]
        asked = GenerationRequest(TokenPrompt(tuple(ids[:9])), SamplingOptions(temperature=0), Bounds(100, 12))

        async def answer() -> list[int]:
            async with aclosing(engine.generate(asked)) as events:
                return [one for event in [e async for e in events] if isinstance(event, Token) for one in event.ids]

        alone = await answer()
        rows = table[ids]
        logits, by_ids, last, hidden, hidden_by_ids, told = await asyncio.gather(
            infer(engine, array=rows),
            infer(engine, ids),
            infer(engine, array=rows, last_only=True),
            infer(engine, array=rows, output="hidden"),
            infer(engine, ids, output="hidden"),
            answer(),
        )
        same(logits, by_ids)
        same(last, by_ids[-1:])
        torch.testing.assert_close(hidden, hidden_by_ids, rtol=2e-4, atol=2e-4)
        assert told == alone


async def test_what_was_computed_of_embeddings_is_nobody_elses(tiny_folder: Path) -> None:
    async with engine_of(tiny_folder) as (engine, table):
        stand_ins = [0] * 33  # the tokens that stand where embeddings are given
        plain = await infer(engine, stand_ins, last_only=True)
        ids = [at * 7 % len(table) for at in range(3, 36)]
        first = await infer(engine, array=table[ids], last_only=True)
        second = await infer(engine, array=table[ids[::-1]], last_only=True)
        same(first, await infer(engine, ids, last_only=True))
        same(second, await infer(engine, ids[::-1], last_only=True))
        same(plain, await infer(engine, stand_ins, last_only=True))
        assert not torch.allclose(first, plain) and not torch.allclose(first, second)
        before = engine.stats()
        await infer(engine, array=table[ids], last_only=True)
        after = engine.stats()
        assert after.cached_prompt_tokens == before.cached_prompt_tokens
        assert after.blocks_cached <= before.blocks_cached, "nothing of it stays where only ids are looked for"


async def test_embeddings_survive_a_lack_of_room(tiny_folder: Path) -> None:
    """The cache holds one of them at a time: others wait, or are computed anew."""
    async with engine_of(tiny_folder, step_tokens=16, mixed_step_tokens=16) as (engine, table):
        texts = [[(at * step) % len(table) for at in range(150)] for step in (3, 5, 7, 11)]
        found = await asyncio.gather(*(infer(engine, array=table[ids]) for ids in texts))
        for ids, logits in zip(texts, found, strict=True):
            same(logits, await infer(engine, ids))


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        (lambda rows: InferenceRequest((1,), embeddings=vectors_of(rows)), "not both"),
        (lambda rows: InferenceRequest(()), "no token"),
        (lambda rows: InferenceRequest((), embeddings=vectors_of(rows[:0])), "no token"),
        (lambda rows: InferenceRequest((), embeddings=vectors_of(rows[:, :-1])), "have 32 numbers, not 31"),
        (
            lambda rows: InferenceRequest((), embeddings=InputVectors(b"1234", rows.shape)),
            "1 numbers are no embeddings",
        ),
        (lambda rows: InferenceRequest((), embeddings=vectors_of(rows / 0.0)), "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
async def test_what_is_no_embedding_is_refused(tiny_folder: Path, request_of: Any, told: str) -> None:
    async with engine_of(tiny_folder) as (engine, table):
        with pytest.raises(RequestError, match=told):
            await engine.infer(request_of(table[:4]))
        with pytest.raises(ContextExceeded):
            await infer(engine, array=np.zeros((24 * 16 + 1, 32), np.float32))
