"""The default model itself: the right answer, transformers' own greedy tokens, and what is told of it.

Runs where the model was fetched (`python -m gpu_node.model_store fetch default`), as the test script does first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, WeightsMode, load_runner
from gpu_node.engine.prompt import prepare
from gpu_node.engine.runner import Runner
from gpu_node.engine.sequence import Bounds, ChatPrompt, Message
from gpu_node.engine.weights.filling import empty_model, fill, slots_of, tie
from gpu_node.engine.weights.gguf_source import GgufSource
from gpu_node.manifest import models_folder
from gpu_node.model_folder import model_files
from gpu_node.model_store import ModelStore, default_cache
from gpu_node.progress import Progress
from tests.fakes.greedy_steps import generated
from tests.gpu_node.engine.driving import greedy

CACHE = Path(os.environ.get("POTLUCK_NODE_CACHE") or default_cache(os.environ))
STORE = ModelStore(CACHE, models_folder(), Progress(io.StringIO()))
FOLDER = STORE.find(STORE.resolve("default"))
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="the default model is not there: python -m gpu_node.model_store fetch default"
)
KNOWN = STORE.manifest.models[0]
FRANCE = Message("user", "What is the capital of France?")


OPTIONS = LoadOptions(device="cpu", template=KNOWN.template, cache=CacheOptions(block_count=32))


def loaded(weights: WeightsMode = "auto") -> Runner:
    assert FOLDER is not None
    return load_runner(FOLDER, replace(OPTIONS, weights=weights, dtype="float32" if weights == "full" else "auto"))


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = loaded()
    yield runner
    runner.close()


def ask(runner: Runner, *messages: Message, count: int = 40) -> str:
    prompt = prepare(ChatPrompt(messages), runner.vocabulary, Bounds(512, count)).token_ids
    return runner.vocabulary.decode(greedy(runner, prompt, count))


def test_it_knows_the_capital_of_france(runner: Runner) -> None:
    assert ask(runner, FRANCE) == "The capital of France is Paris."


def test_a_half_told_answer_goes_on(runner: Runner) -> None:
    assert ask(runner, FRANCE, Message("assistant", "The capital of")) == " France is Paris."


def test_it_ends_even_where_it_would_ramble() -> None:
    assert 0 < KNOWN.parameters["num_predict"] <= 512


def test_it_runs_as_it_is_stored_and_tells_what_that_costs(runner: Runner) -> None:
    told = runner.summary
    assert (told["weights"], told["layers"]) == ("stored", "own")
    assert told["weight_bytes"] < 0.4 * told["bfloat16_bytes"]
    assert 0 < told["weight_error"] < 0.01


def test_greedy_tokens_are_those_of_generate() -> None:
    """By transformers' own model of the file's dequantised weights, which no layer of ours computes."""
    import torch

    assert FOLDER is not None
    source = GgufSource(model_files(FOLDER).weights)
    model = empty_model(source.config, torch.float32, torch.device("cpu"))
    fill(slots_of(model, source) or [], source, torch.float32, torch.device("cpu"))
    tie(model)
    source.close()
    runner = loaded("full")
    prompt = runner.vocabulary.encode(runner.vocabulary.render([Message("user", "Count from 1 to 12.")]))
    found = greedy(runner, prompt, 16)
    assert found == generated(model, prompt, 16)[: len(found)]
    assert len(found) > 10
    runner.close()


def test_tokens_are_those_of_ollama(runner: Runner) -> None:
    """Ids that a real Ollama gave for the same file (`context` of its answer); digits stand alone."""
    encode, render = runner.vocabulary.encode, runner.vocabulary.render
    recorded = [1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 1963, 6330, 30, 2, 198, 1, 520, 9531, 198]
    assert encode(render([Message("user", "Why is the sky blue? One sentence.")])) == recorded
    assert encode('": 1985,') == [1799, 216, 33, 41, 40, 37, 28]


def test_it_is_described_as_what_it_is() -> None:
    assert FOLDER is not None
    model = STORE.describe(STORE.resolve("default"), FOLDER)
    assert (model.parameter_size, model.quantisation, model.context_length) == ("134.52M", "Q4_1", 8192)
    assert model.format == "gguf"
    assert (model.licence, model.digest) == ("Apache-2.0", STORE.manifest.models[0].sha256)
