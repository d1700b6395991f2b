"""Trained models give the tokens of `generate` too: a story teller from npm, and the default model where it is."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, PartOptions, load_runner
from gpu_node.engine.stage import PlainStage
from gpu_node.manifest import models_folder
from gpu_node.model_store import ModelStore, default_cache
from gpu_node.progress import Progress
from tests.fakes.greedy_steps import GreedySteps, generated
from tests.fakes.stories import NotThere, StoryWords, stories_file, stories_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import chained

BEGINNINGS = [
    "Once upon a time",
    "Tom had a red ball",
    "The cat",
    "One day, a girl named Lily went to the park with her mom",
]
COUNT = 30
COUNT_OF_DEFAULT = 12


@pytest.fixture(scope="module")
def story_file() -> Path:
    try:
        return stories_file()
    except NotThere as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def stories(story_file: Path) -> Iterator[tuple[Any, list[list[int]], list[list[int]]]]:
    """The model, prompts and their answers by `generate`."""
    words, model = StoryWords.of(story_file), stories_model(story_file)
    prompts = [words.encode(text) for text in BEGINNINGS]
    yield model, prompts, [generated(model, prompt, COUNT) for prompt in prompts]


def test_it_tells_stories(story_file: Path, stories: tuple[Any, list[list[int]], list[list[int]]]) -> None:
    words, (_, prompts, answers) = StoryWords.of(story_file), stories
    assert words.decode(prompts[0] + answers[0]).startswith(" Once upon a time, there was a little girl named Lily.")
    assert len({token for answer in answers for token in answer}) > 40


@pytest.mark.parametrize("seed", [0, 1])
def test_stories_are_those_of_generate(stories: tuple[Any, list[list[int]], list[list[int]]], seed: int) -> None:
    model, prompts, expected = stories
    stage = PlainStage(model, PagedAttention())
    assert GreedySteps(stage, seed).answers(prompts, COUNT) == expected


@pytest.mark.parametrize("counts", [(3, 3), (1, 2, 2, 1)], ids=str)
def test_stories_are_the_same_over_parts(stories: tuple[Any, list[list[int]], list[list[int]]], counts: Any) -> None:
    model, prompts, expected = stories
    assert GreedySteps(chained(model, counts)).answers(prompts, COUNT) == expected


def default_folder() -> Path | None:
    cache = Path(os.environ.get("POTLUCK_NODE_CACHE") or default_cache(os.environ))
    store = ModelStore(cache, models_folder(), Progress(io.StringIO()))
    return store.find(store.resolve("default"))


WITH_DEFAULT = pytest.mark.skipif(
    default_folder() is None, reason="the default model is not there: python -m gpu_node.model_store fetch default"
)


@WITH_DEFAULT
def test_the_default_model_answers_as_generate_does() -> None:
    """In single precision, by transformers' own modules over our pages, then by the same modules alone."""
    folder = default_folder()
    assert folder is not None
    options = LoadOptions("cpu", "float32", weights="full", layers="plain", cache=CacheOptions(block_count=1))
    runner = load_runner(folder, options)
    stage: Any = runner._stage
    assert isinstance(stage, PlainStage)
    prompts = [runner.vocabulary.encode(text) for text in ("The capital of France is", "Count: one, two,", "Water")]
    found = GreedySteps(stage).answers(prompts, COUNT_OF_DEFAULT)
    model: Any = stage._model
    model.set_attn_implementation("sdpa")
    assert len({token for answer in found for token in answer}) > 10
    assert found == [generated(model, prompt, COUNT_OF_DEFAULT) for prompt in prompts]


@WITH_DEFAULT
def test_the_default_model_answers_the_same_over_two_parts() -> None:
    """With the file's own codes, over two budgets neither of which holds the weights."""
    folder = default_folder()
    assert folder is not None
    cache = CacheOptions(context=2048, max_running=1)
    options = LoadOptions("cpu", threads=1, cache=cache)
    whole = load_runner(folder, options)
    prompts = [whole.vocabulary.encode(text) for text in ("The capital of France is", "Count: one, two,", "Water")]
    expected = [greedy(whole, prompt, COUNT_OF_DEFAULT) for prompt in prompts]
    most = whole.memory_bytes - (6 << 20)
    whole.close()
    parts = (PartOptions(15, most), PartOptions(15, most))
    split = load_runner(folder, replace(options, parts=parts))
    assert split.cache.block_count == cache.context // cache.block_tokens
    assert [greedy(split, prompt, COUNT_OF_DEFAULT) for prompt in prompts] == expected
    split.close()
    assert len({token for answer in expected for token in answer}) > 10
