"""Trained models give the tokens of `generate` too: a story teller from npm, and the default model where it is."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.stage import PlainStage
from gpu_node.manifest import models_folder
from gpu_node.model_folder import ORIGIN_FILE
from gpu_node.model_store import ModelStore, default_cache
from gpu_node.progress import Progress
from tests.fakes.greedy_steps import GreedySteps, generated
from tests.fakes.stories import NotThere, StoryWords, stories_file, stories_model

BEGINNINGS = [
    "Once upon a time",
    "Tom had a red ball",
    "The cat",
    "One day, a girl named Lily went to the park with her mom",
]
COUNT = 40


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
    assert len({token for answer in answers for token in answer}) > 50


@pytest.mark.parametrize("seed", [0, 1])
def test_stories_are_those_of_generate(stories: tuple[Any, list[list[int]], list[list[int]]], seed: int) -> None:
    model, prompts, expected = stories
    stage = PlainStage(model, PagedAttention())
    assert GreedySteps(stage, seed).answers(prompts, COUNT) == expected


def default_folder() -> Path | None:
    cache = Path(os.environ.get("POTLUCK_NODE_CACHE") or default_cache(os.environ))
    store = ModelStore(cache, models_folder(), Progress(io.StringIO()))
    return store.find(store.resolve("default"))


@pytest.mark.skipif(
    default_folder() is None, reason="the default model is not there: python -m gpu_node.model_store fetch default"
)
def test_the_default_model_answers_as_generate_does() -> None:
    from transformers import AutoTokenizer

    folder = default_folder()
    assert folder is not None
    tokenizer, model = AutoTokenizer.from_pretrained(folder), whole_precision(folder)
    prompts = [tokenizer(text)["input_ids"] for text in ("The capital of France is", "Count: one, two,", "Water")]
    expected = [generated(model, prompt, 16) for prompt in prompts]
    assert len({token for answer in expected for token in answer}) > 12
    assert GreedySteps(PlainStage(model, PagedAttention())).answers(prompts, 16) == expected


def whole_precision(folder: Path) -> Any:
    """The model in single precision, from safetensors in the folder or the GGUF file that its note names."""
    from transformers import AutoModelForCausalLM, GgufConfig

    note = json.loads((folder / ORIGIN_FILE).read_text())
    if "weights" not in note:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    path = folder / note["weights"]
    plain = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=plain
    )
