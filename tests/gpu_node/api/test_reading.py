"""Every option arrives where it works, and what cannot be honoured is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_node.api.reading import read_bounds, read_chat, read_generate
from gpu_node.api.schemas import OPTION_KINDS, ChatBody, GenerateBody
from gpu_node.engine.sequence import GenerationRequest, SamplingOptions
from gpu_node.errors import RequestError


def read(
    options: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None, **body: Any
) -> GenerationRequest:
    given = GenerateBody.model_validate({"prompt": "p", "options": options, **body})
    return read_generate(given, "m", parameters or {}, 4096)


def test_every_sampling_option_arrives() -> None:
    sampling = read(
        {
            "temperature": 0.5, "top_k": 3, "top_p": 0.4, "min_p": 0.1, "repeat_penalty": 1.3, "repeat_last_n": -1,
            "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": 9, "typical_p": 0.6,
        }
    ).sampling  # fmt: skip
    assert sampling == SamplingOptions(0.5, 3, 0.4, 0.1, 1.3, 0.2, 0.3, -1, 9, 0.6)


def test_the_defaults_are_ollamas() -> None:
    assert read().sampling == SamplingOptions(0.8, 40, 0.9, 0.0, 1.1, 0.0, 0.0, 64, None)
    assert read({"seed": -1}).sampling.seed is None


def test_values_out_of_range_are_taken_to_their_nearest() -> None:
    sampling = read({"temperature": -1, "top_p": 5, "min_p": -2}).sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.0, 1.0, 0.0)


def test_bounds() -> None:
    bounds = read({"num_ctx": 512, "num_predict": 7, "num_keep": 2}, truncate=False, shift=False).bounds
    assert (bounds.context_tokens, bounds.max_tokens, bounds.keep_tokens) == (512, 7, 2)
    assert (bounds.truncate, bounds.shift) == (False, False)
    assert read({"num_ctx": 10**9}).bounds.context_tokens == 4096
    assert read({"num_ctx": 1}).bounds.context_tokens == 4
    assert read_bounds({}, 4096, None).truncate


def test_stop_words_come_once_and_never_empty() -> None:
    assert read({"stop": ["a", "", "a", "b"]}).stop == ("a", "b")


def test_a_request_overrides_the_models_own_parameters() -> None:
    assert read({"top_k": 1}, {"top_k": 2, "temperature": 0.2}).sampling.top_k == 1
    assert read({}, {"temperature": 0.2}).sampling.temperature == 0.2


@pytest.mark.parametrize("options", [{"mirostat": 1}, {"tfs_z": 0.5}, {"repeat_penalty": 0}], ids=str)
def test_what_would_change_the_answer_and_is_not_there_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        read(options)


def test_neutral_values_and_hints_for_the_hardware_pass() -> None:
    read({"mirostat": 0, "typical_p": 1.0, "num_gpu": 1, "num_thread": 4, "use_mmap": True, "num_batch": 8})
    hints = {"mirostat_tau", "mirostat_eta", "penalize_newline", "num_batch", "num_gpu", "main_gpu", "num_thread",
             "use_mmap", "use_mlock", "low_vram", "numa", "draft_num_predict"}  # fmt: skip
    honoured = {"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
                "repeat_last_n", "seed", "num_predict", "num_ctx", "num_keep", "stop", "typical_p"}  # fmt: skip
    assert set(OPTION_KINDS) == hints | honoured | {"mirostat", "tfs_z"}


def test_tool_calls_in_the_past_are_refused() -> None:
    body = ChatBody.model_validate({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]})
    with pytest.raises(RequestError, match="m does not support tools"):
        read_chat(body, "m", {}, 100)


def test_an_unknown_role_is_let_through() -> None:
    body = ChatBody.model_validate({"messages": [{"role": "wizard", "content": "hi"}]})
    assert read_chat(body, "m", {}, 100).prompt.messages[0].role == "wizard"  # type: ignore[union-attr]
