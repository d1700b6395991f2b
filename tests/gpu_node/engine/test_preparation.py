"""Requests are refused, cut and made ready before the engine's thread hears of them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from gpu_node.engine.preparation import (
    Bound,
    GuideShelf,
    check_inference,
    errors_of_its_own,
    prepare_generation,
    prepare_texts,
    within,
)
from gpu_node.engine.sequence import (
    Bounds,
    EmbeddingRequest,
    GenerationRequest,
    InferenceRequest,
    JsonGuide,
    RawPrompt,
    SamplingOptions,
)
from gpu_node.errors import ContextExceeded, GenerationFailed, NodeBusy, RequestError
from tests.fakes.scripted_runner import ScriptedRunner

RUNNER = ScriptedRunner()
BOUND = Bound(capacity_tokens=40, max_samples=4, max_prompt_characters=200, max_inference_bytes=10_000)
REQUEST = GenerationRequest(RawPrompt("x" * 100), SamplingOptions(), Bounds(1000), priority=3, caller="me", samples=2)


def prepared(request: GenerationRequest):
    start: Any = lambda guide: guide  # noqa: E731
    return prepare_generation(request, RUNNER, BOUND, start, arrived=7.0)


def test_no_context_is_longer_than_the_cache() -> None:
    ready = prepared(REQUEST)
    assert len(ready.ids) == 40 and ready.request.bounds.context_tokens == 40
    assert within(Bounds(30), 40) == Bounds(30)


def test_what_the_scheduler_must_know_is_in_the_submission() -> None:
    submission = prepared(replace(REQUEST, deadline=9.0, cache_salt="s")).submission
    assert (submission.samples, submission.priority, submission.caller, submission.deadline) == (2, 3, "me", 9.0)
    assert (submission.max_context, submission.salt, submission.output) == (40, "s", "sample")


def test_guided_answers_are_not_speculated_on() -> None:
    assert prepared(REQUEST).submission.speculate
    guided = prepared(replace(REQUEST, sampling=SamplingOptions(guide=JsonGuide())))
    assert not guided.submission.speculate and guided.guides == (JsonGuide(), JsonGuide())


def test_texts_are_cut_only_when_they_may_be() -> None:
    assert [len(text) for text in prepare_texts(EmbeddingRequest(("x" * 90, "xx"), 50), RUNNER, BOUND)] == [40, 2]
    with pytest.raises(ContextExceeded):
        prepare_texts(EmbeddingRequest(("x" * 90,), 50, truncate=False), RUNNER, BOUND)


def test_an_inference_is_bounded_by_what_it_gives_back() -> None:
    check_inference(InferenceRequest((1,) * 9), RUNNER, BOUND)
    with pytest.raises(RequestError) as caught:
        check_inference(InferenceRequest((1,) * 10), RUNNER, BOUND)
    assert caught.value.status == 413
    check_inference(InferenceRequest((1,) * 10, last_only=True), RUNNER, BOUND)
    check_inference(InferenceRequest((1,) * 40, "hidden"), RUNNER, BOUND)


def test_errors_of_others_become_the_requests_own_and_ours_stay() -> None:
    with pytest.raises(GenerationFailed, match="it broke: odd"), errors_of_its_own("it broke"):
        raise ValueError("odd")
    with pytest.raises(NodeBusy), errors_of_its_own("it broke"):
        raise NodeBusy


def test_the_first_guides_of_a_model_are_made_once_though_many_ask() -> None:
    made, gate = list[object](), threading.Barrier(4)

    def make(runner: object):
        made.append(runner)
        return lambda guide: guide

    shelf = GuideShelf(make)

    def ask() -> None:
        gate.wait(60)
        shelf.of(RUNNER)(JsonGuide())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [RUNNER]
    other = ScriptedRunner()
    shelf.of(other)(JsonGuide())
    shelf.clear()
    shelf.of(other)(JsonGuide())
    assert made == [RUNNER, other, other]
