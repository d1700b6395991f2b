"""The default model itself: the right answer, transformers' own greedy tokens, and the second turn from the cache.

Runs where the model was fetched (`python -m gpu_node.model_store fetch default`), as the test script does first.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.runner import Runner
from gpu_node.engine.sequence import Bounds, ChatPrompt, Done, GenerationRequest, Message, SamplingOptions, Token
from gpu_node.manifest import models_folder
from gpu_node.model_store import ModelStore, default_cache
from gpu_node.progress import Progress

CACHE = Path(os.environ.get("POTLUCK_NODE_CACHE") or default_cache(os.environ))
STORE = ModelStore(CACHE, models_folder(), Progress(io.StringIO()))
FOLDER = STORE.find(STORE.resolve("default"))
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="the default model is not there: python -m gpu_node.model_store fetch default"
)
KNOWN = STORE.manifest.models[0]
FRANCE = Message("user", "What is the capital of France?")


@pytest.fixture(scope="module")
def runner() -> Runner:
    assert FOLDER is not None
    return load_runner(FOLDER, LoadOptions(device="cpu", template=KNOWN.template))


def ask(runner: Runner, *messages: Message, sampling: SamplingOptions | None = None, **bounds: int) -> tuple[str, Done]:
    pieces: list[Token] = []
    request = GenerationRequest(
        ChatPrompt(messages), sampling or SamplingOptions(temperature=0), Bounds(8192, **{"max_tokens": 40, **bounds})
    )
    done = runner.generate(request, pieces.append, threading.Event())
    return "".join(piece.text for piece in pieces), done


def test_it_knows_the_capital_of_france(runner: Runner) -> None:
    text, done = ask(runner, FRANCE)
    assert text == "The capital of France is Paris."
    assert done.reason == "stop"


def test_its_own_parameters_keep_it_to_the_point(runner: Runner) -> None:
    sampling = {name: value for name, value in KNOWN.parameters.items() if name != "num_predict"}
    for seed in range(3):
        text, _ = ask(runner, FRANCE, sampling=SamplingOptions(**sampling, seed=seed))
        assert "Paris" in text


def test_it_ends_even_where_it_would_ramble() -> None:
    assert 0 < KNOWN.parameters["num_predict"] <= 512


def test_a_second_turn_is_read_from_where_it_differs(runner: Runner) -> None:
    text, first = ask(runner, FRANCE)
    _, second = ask(runner, FRANCE, Message("assistant", text), Message("user", "And of Italy?"))
    assert second.reused_tokens >= first.prompt_tokens


def test_a_half_told_answer_goes_on(runner: Runner) -> None:
    text, _ = ask(runner, FRANCE, Message("assistant", "The capital of"))
    assert text == " France is Paris."


def test_greedy_tokens_are_those_of_generate() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert FOLDER is not None
    runner = load_runner(FOLDER, LoadOptions(device="cpu", dtype="float32"))
    plain = SamplingOptions(temperature=0, repeat_penalty=1.0)
    _, done = ask(runner, Message("user", "Count from 1 to 12."), sampling=plain, max_tokens=24)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    prompt = torch.tensor([done.context[: done.prompt_tokens]])
    mask = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert [int(token) for token in out[0]][: len(done.context)] == list(done.context)


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
    assert (model.licence, model.digest) == ("Apache-2.0", STORE.manifest.models[0].sha256)
