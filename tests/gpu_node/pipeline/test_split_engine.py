"""An engine over a split model answers what a single stage answers alone, whatever happens to its requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.layers.chains import LAYERS, divisions
from tests.gpu_node.engine.test_chain_engine import LEAVING, REQUESTS, SHARED, asked, ids_of
from tests.gpu_node.pipeline.split_engines import Answers, Scene, answers_alone
from tests.gpu_node.serving import until_true


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Answers:
    return answers_alone(folder)


@pytest.mark.parametrize("counts", [counts for counts in divisions(LAYERS) if len(counts) > 1], ids=str)
async def test_every_split_answers_as_if_alone(folder: Path, alone: Answers, counts: tuple[int, ...]) -> None:
    """Too few blocks for all of them, prefixes that are shared, guesses, and clients that leave in the middle."""
    async with Scene(folder, counts, depth=len(counts)).engine() as engine:
        await ids_of(engine, asked(SHARED))
        leaving = [asyncio.create_task(ids_of(engine, request, stop_after=3)) for request in LEAVING]
        found = await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await asyncio.gather(*leaving)
        await until_true(lambda: engine.stats().cancelled == 2)
        stats = engine.stats()
    assert found == alone
    assert stats.preemptions and stats.cached_prompt_tokens and stats.accepted_drafts
