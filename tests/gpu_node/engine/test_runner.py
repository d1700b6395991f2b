"""The decode loop against transformers' own `generate`, its cache, its bounds and its ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.runner import PREFILL_TOKENS, Cancelled, Runner, common_prefix, croppable
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
    Done,
    EmbeddingRequest,
    GenerationRequest,
    Message,
    RawPrompt,
    SamplingOptions,
    Token,
)
from gpu_node.errors import ContextExceeded, RequestError
from tests.fakes.tiny_model import CONTEXT, write_tiny_model

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0)
OPTIONS = LoadOptions(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def runner(tiny_folder: Path) -> Runner:
    return load_runner(tiny_folder, OPTIONS)


def ask(
    runner: Runner,
    prompt: str | ChatPrompt,
    stop: tuple[str, ...] = (),
    sampling: SamplingOptions = GREEDY,
    **bounds: Any,
) -> tuple[str, Done]:
    pieces: list[Token] = []
    request = GenerationRequest(
        RawPrompt(prompt) if isinstance(prompt, str) else prompt,
        sampling,
        Bounds(**{"context_tokens": CONTEXT, "max_tokens": 40, **bounds}),
        stop,
    )
    done = runner.generate(request, pieces.append, threading.Event())
    return "".join(piece.text for piece in pieces), done


def reference(folder: Path, prompt: str, count: int) -> list[int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [int(token) for token in out[0]]


PROMPTS = ["the quick brown", "a", "日本語 zażółć 😀", "x" * 120]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_generate(tiny_folder: Path, prompt: str) -> None:
    fresh = load_runner(tiny_folder, OPTIONS)
    _, done = ask(fresh, prompt)
    expected = reference(tiny_folder, prompt, 40)
    assert list(done.context) == [token for token in expected if token != 2]
    assert done.output_tokens == len(expected) - done.prompt_tokens


def test_answers_vary_enough_to_mean_something(runner: Runner) -> None:
    _, done = ask(runner, "the quick brown")
    assert len(set(done.context[done.prompt_tokens :])) > 5


def test_a_long_prompt_is_read_in_pieces_with_the_same_result(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "long", max_position_embeddings=2048)
    prompt = "word " * (PREFILL_TOKENS // 2)
    assert len(load_runner(folder, OPTIONS).vocabulary.encode(prompt)) > PREFILL_TOKENS
    _, done = ask(load_runner(folder, OPTIONS), prompt, context_tokens=2048)
    assert list(done.context) == [t for t in reference(folder, prompt, 40) if t != 2]


@pytest.mark.parametrize("window", [8, 1000])
def test_a_sliding_window_changes_nothing_of_the_equality(tmp_path: Path, window: int) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    from tests.fakes.tiny_model import tiny_config, tiny_tokenizer

    torch.manual_seed(3)
    config = MistralConfig(**{**tiny_config().to_dict(), "model_type": "mistral", "sliding_window": window})
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    runner = load_runner(tmp_path, OPTIONS)
    first, done = ask(runner, "the quick brown fox jumps")
    assert list(done.context) == [t for t in reference(tmp_path, "the quick brown fox jumps", 40) if t != 2]
    again, repeated = ask(runner, "the quick brown fox jumps")
    assert again == first
    assert (repeated.reused_tokens > 0) == (window == 1000)


def test_a_second_turn_reads_only_what_is_new(runner: Runner) -> None:
    first = ChatPrompt((Message("user", "the quick brown fox"),))
    _, done = ask(runner, first)
    answer = runner.vocabulary.decode(done.context[done.prompt_tokens :])
    second = ChatPrompt((*first.messages, Message("assistant", answer), Message("user", "and the dog?")))
    _, warm = ask(runner, second)
    assert warm.reused_tokens >= done.prompt_tokens
    runner.forget()
    _, cold = ask(runner, second)
    assert cold.reused_tokens == 0
    assert warm.context == cold.context


def test_another_conversation_does_not_see_the_last_one(runner: Runner) -> None:
    runner.forget()
    alone, _ = ask(runner, "a model answers")
    ask(runner, "zażółć gęślą jaźń")
    after, done = ask(runner, "a model answers")
    assert after == alone
    assert done.prompt_tokens > done.reused_tokens


def test_the_same_prompt_again_still_computes_its_last_token(runner: Runner) -> None:
    one, _ = ask(runner, "the lazy dog")
    other, done = ask(runner, "the lazy dog")
    assert (one, done.reused_tokens) == (other, done.prompt_tokens - 1)


def test_a_last_assistant_message_is_continued(runner: Runner) -> None:
    user = Message("user", "the quick brown fox")
    whole, done = ask(runner, ChatPrompt((user,)))
    ids = done.context[done.prompt_tokens :]
    told = runner.vocabulary.decode(ids[:6])
    rest, _ = ask(runner, ChatPrompt((user, Message("assistant", told))), max_tokens=34)
    if runner.vocabulary.encode(told) == list(ids[:6]):  # the same text may be other tokens
        assert told + rest == whole
    rendered = runner.vocabulary.render([user])
    raw, _ = ask(runner, rendered + told, max_tokens=34)
    assert raw == rest


def test_a_seed_repeats_an_answer_whatever_ran_before(runner: Runner) -> None:
    sampling = SamplingOptions(temperature=1.0, seed=5)
    one, _ = ask(runner, "the dog", sampling=sampling)
    ask(runner, "something else")
    other, _ = ask(runner, "the dog", sampling=sampling)
    third, _ = ask(runner, "the dog", sampling=SamplingOptions(temperature=1.0, seed=6))
    assert one == other != third


def test_stop_strings_end_the_answer_before_them(runner: Runner) -> None:
    whole, _ = ask(runner, "the quick brown")
    at = next(at for at in range(4, len(whole) - 2) if "\ufffd" not in whole[at : at + 2])
    stop = whole[at : at + 2]
    text, done = ask(runner, "the quick brown", stop=("never", stop))
    assert text == whole[: whole.index(stop)]
    assert done.reason == "stop"


def test_num_predict_ends_with_length(runner: Runner) -> None:
    _, done = ask(runner, "the quick brown", max_tokens=3)
    assert (done.reason, done.output_tokens) == ("length", 3)


def test_an_answer_goes_on_past_the_context_by_shifting(tiny_folder: Path) -> None:
    runner = load_runner(tiny_folder, OPTIONS)
    _, done = ask(runner, "the quick brown", context_tokens=16, max_tokens=60, stop=())
    assert done.output_tokens == 60 or done.reason == "stop"
    assert len(runner.cached_tokens) <= 16
    assert runner._cache.get_seq_length() == len(runner.cached_tokens)


@pytest.mark.parametrize("bounds", [{"shift": False, "max_tokens": 60}, {"max_tokens": -2}])
def test_without_shifting_the_context_is_the_end(runner: Runner, bounds: dict[str, Any]) -> None:
    _, done = ask(runner, "the quick brown", context_tokens=24, **bounds)
    assert done.reason == "length"
    assert done.prompt_tokens + done.output_tokens == 25  # the last token needs no room of its own


def test_endless_ends_after_ten_contexts(runner: Runner) -> None:
    assert Bounds(context_tokens=20, max_tokens=-1).token_limit == 200
    assert Bounds(context_tokens=20, max_tokens=0).token_limit == 200
    assert Bounds(context_tokens=20, max_tokens=10**9).token_limit == 200


def test_a_prompt_that_is_too_long_is_cut_or_refused(runner: Runner) -> None:
    _, done = ask(runner, "word " * 500, max_tokens=2)
    assert done.prompt_tokens == CONTEXT
    with pytest.raises(ContextExceeded):
        ask(runner, "word " * 500, truncate=False)


def test_an_end_token_ends_the_answer_and_counts(tiny_folder: Path) -> None:
    runner = load_runner(tiny_folder, OPTIONS)
    _, done = ask(runner, "the quick brown")
    third = done.context[done.prompt_tokens + 2]
    runner.vocabulary._end_ids = frozenset({third})
    _, ended = ask(runner, "the quick brown")
    first = done.context[done.prompt_tokens :].index(third)
    assert (ended.reason, ended.output_tokens) == ("stop", first + 1)
    assert ended.context == done.context[: done.prompt_tokens + first]


@pytest.mark.parametrize("after", [1, 5])
def test_a_cancel_stops_within_one_token(runner: Runner, after: int) -> None:
    cancelled, pieces = threading.Event(), list[Token]()

    def emit(token: Token) -> None:
        pieces.append(token)
        if len(pieces) == after:
            cancelled.set()

    request = GenerationRequest(RawPrompt("the quick"), GREEDY, Bounds(CONTEXT, 200))
    with pytest.raises(Cancelled):
        runner.generate(request, emit, cancelled)
    assert len(pieces) == after
    assert runner._cache.get_seq_length() == len(runner.cached_tokens)


def test_a_cancel_stops_between_pieces_of_the_prompt(runner: Runner) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        runner.read([1, 2, 3], cancelled)


def test_after_a_failure_the_next_request_starts_clean(runner: Runner) -> None:
    expected, _ = ask(runner, "the lazy dog")

    def fail(token: Token) -> None:
        raise ZeroDivisionError

    request = GenerationRequest(RawPrompt("the lazy"), GREEDY, Bounds(CONTEXT, 20))
    with pytest.raises(ZeroDivisionError):
        runner.generate(request, fail, threading.Event())
    assert runner.cached_tokens == []
    assert ask(runner, "the lazy dog")[0] == expected


def test_durations_and_counts_are_real(runner: Runner) -> None:
    _, done = ask(runner, "the quick brown", max_tokens=5)
    assert done.prompt_tokens == len(runner.vocabulary.encode("the quick brown"))
    assert done.prompt_ns > 0 and done.output_ns > 0


def test_embeddings_are_normalised_means(runner: Runner, tiny_folder: Path) -> None:
    request = EmbeddingRequest(("the quick brown", "fox"), CONTEXT)
    found = runner.embed(request, threading.Event())
    for vector in found.vectors:
        assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5)
    ids = runner.vocabulary.encode("the quick brown")
    assert found.prompt_tokens == len(ids) + len(runner.vocabulary.encode("fox"))
    states = runner._model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    expected = torch.nn.functional.normalize(states, dim=0)
    assert torch.allclose(torch.tensor(found.vectors[0]), expected, atol=1e-5)


def test_embeddings_may_be_plain_or_shorter(runner: Runner) -> None:
    plain = runner.embed(EmbeddingRequest(("fox",), CONTEXT, normalise=False), threading.Event()).vectors[0]
    short = runner.embed(EmbeddingRequest(("fox",), CONTEXT, dimensions=4), threading.Event()).vectors[0]
    assert sum(x * x for x in plain) != pytest.approx(1.0, abs=1e-2)
    assert len(short) == 4
    assert sum(x * x for x in short) == pytest.approx(1.0, abs=1e-5)


def test_texts_that_cannot_be_embedded_are_refused(runner: Runner) -> None:
    with pytest.raises(RequestError, match="empty"):
        runner.embed(EmbeddingRequest(("",), CONTEXT), threading.Event())
    with pytest.raises(ContextExceeded):
        runner.embed(EmbeddingRequest(("word " * 500,), CONTEXT, truncate=False), threading.Event())
    cut = runner.embed(EmbeddingRequest(("word " * 500,), CONTEXT), threading.Event())
    assert cut.prompt_tokens == CONTEXT


def test_a_closed_runner_holds_no_weights(tiny_folder: Path) -> None:
    import weakref

    runner = load_runner(tiny_folder, OPTIONS)
    ask(runner, "the", max_tokens=2)
    model = weakref.ref(runner._model)
    runner.close()
    assert model() is None


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2, 3]) == 2


def test_a_cache_that_cannot_go_back_is_said_to() -> None:
    class Stuck:
        is_croppable = False
        layers: tuple[object, ...] = ()

    assert croppable(Stuck(), 0)
    assert not croppable(Stuck(), 1)
