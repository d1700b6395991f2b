"""GENERATE can carry every option that the engine has, with the engine's own defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpu_node.engine import sequence
from wire import messages_work


def _defaults(record: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(record)}


@pytest.mark.parametrize(
    ("ours", "engines"),
    [
        (messages_work.Sampling, sequence.SamplingOptions),
        (messages_work.JsonGuide, sequence.JsonGuide),
        (messages_work.RegexGuide, sequence.RegexGuide),
        (messages_work.ChatMessage, sequence.Message),
        (messages_work.ChatPrompt, sequence.ChatPrompt),
    ],
)
def test_records_are_the_engines(ours: type[Any], engines: type[Any]) -> None:
    assert _defaults(ours) == _defaults(engines)


def test_logprobs_are_the_engines_with_the_text_that_a_client_has_no_vocabulary_for() -> None:
    assert set(_defaults(messages_work.Logprob)) == {*_defaults(sequence.Logprob), "text"}


def test_bounds_are_the_engines_and_the_context_may_be_the_models() -> None:
    assert _defaults(messages_work.Bounds) == _defaults(sequence.Bounds) | {"context_tokens": 0}


def test_a_request_has_all_that_the_engine_can_be_asked() -> None:
    renamed = {"deadline": "deadline_ms"}
    wanted = {renamed.get(name, name) for name in _defaults(sequence.GenerationRequest)}
    assert wanted <= set(_defaults(messages_work.Generate))


@pytest.mark.parametrize(
    ("ours", "engines"),
    [(messages_work.Tokens, sequence.Token), (messages_work.Done, sequence.Done)],
)
def test_answers_have_all_that_the_engine_tells(ours: type[Any], engines: type[Any]) -> None:
    assert set(_defaults(engines)) <= set(_defaults(ours))


def test_embedding_requests_are_the_engines() -> None:
    assert set(_defaults(sequence.EmbeddingRequest)) <= set(_defaults(messages_work.Embed))
