"""Calls in Ollama's terms as messages of the protocol: every field honoured, or refused as our node's HTTP API does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from server.backends.base import Call
from server.backends.relay_options import OPTION_KINDS
from server.backends.relay_request import KNOWN_FIELDS, asked_of, embed_of, keep_alive_of, loading_of, rendering_of
from server.errors import NodeIncapable, NodeRefused
from server.exchange import Begun
from wire.messages import encode_message
from wire.messages_work import (
    Bounds,
    ChatMessage,
    ChatPrompt,
    Embed,
    Generate,
    Given,
    JsonGuide,
    Load,
    Sampling,
    TextPrompt,
    Unload,
)

CHAT = Call("chat", "m", messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}])
RAW = Call("generate", "m", prompt="once", fields={"raw": True})
PROMPT = Call("generate", "m", prompt="once")


def generate(call: Call, parameters: dict[str, Any] | None = None) -> Generate:
    asked = asked_of(call, parameters or {})
    assert isinstance(asked, Generate)
    encode_message(asked)
    return asked


def test_a_chat():
    wanted = ChatPrompt((ChatMessage("system", "be brief"), ChatMessage("user", "hi")))
    assert generate(CHAT) == Generate("m", wanted)


def test_fields_of_messages_that_a_text_model_has_no_use_for_are_let_be():
    messages = [
        {"role": "user", "content": "hi", "images": []},
        {"role": "assistant", "thinking": "hm", "content": None},
    ]
    assert generate(replace(CHAT, messages=messages)).prompt == ChatPrompt(
        (ChatMessage("user", "hi"), ChatMessage("assistant", ""))
    )


def test_a_prompt_goes_through_the_template_unless_raw():
    assert generate(RAW).prompt == TextPrompt("once")
    call = replace(PROMPT, fields={"system": "be brief", "context": [1, 2]})
    assert generate(call).prompt == ChatPrompt((ChatMessage("system", "be brief"), ChatMessage("user", "once")), (1, 2))


OPTIONS = {
    "temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.2,
    "presence_penalty": 0.1, "frequency_penalty": 0.2, "repeat_last_n": 32, "seed": 42, "num_predict": 9,
    "num_ctx": 128, "num_keep": 5, "stop": ["a", "", "b", "a"],
}  # fmt: skip
NO_EFFECT = {
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "tfs_z": 1.0, "penalize_newline": True, "num_batch": 512,
    "num_gpu": 1, "main_gpu": 0, "num_thread": 4, "use_mmap": True, "use_mlock": False, "low_vram": False,
    "numa": False, "draft_num_predict": 4,
}  # fmt: skip


def test_every_option():
    assert {**OPTIONS, **NO_EFFECT}.keys() == OPTION_KINDS.keys()
    asked = generate(replace(CHAT, options={**OPTIONS, **NO_EFFECT, "unheard_of": 1}))
    assert asked.sampling == Sampling(0.5, 7, 0.8, 0.1, 1.2, 0.1, 0.2, 32, 42, 0.9)
    assert asked.bounds == Bounds(128, 9, 5)
    assert asked.stop == ("a", "b")


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"temperature": -1}, "temperature", 0.0),
        ({"top_p": 3}, "top_p", 1.0),
        ({"min_p": -3}, "min_p", 0.0),
        ({"typical_p": 0}, "typical_p", 1.0),
        ({"seed": -1}, "seed", None),
        ({"seed": 1 << 70}, "seed", (1 << 63) - 1),
        ({"top_k": 1 << 40}, "top_k", (1 << 31) - 1),
        ({"top_k": 5.0}, "top_k", 5),
        ({"repeat_last_n": -7}, "repeat_last_n", -1),
    ],
)
def test_numbers_beyond_what_means_anything(options: dict[str, Any], name: str, value: object):
    assert getattr(generate(replace(CHAT, options=options)).sampling, name) == value


@pytest.mark.parametrize(("wanted", "sent"), [(0, -1), (-1, -1), (-2, -2), (-9, -1), (1 << 40, (1 << 31) - 1), (3, 3)])
def test_how_many_tokens(wanted: int, sent: int):
    assert generate(replace(CHAT, options={"num_predict": wanted})).bounds.max_tokens == sent


@pytest.mark.parametrize(("wanted", "sent"), [(0, 0), (-5, 0), (1, 4), (4096, 4096)])
def test_how_much_context(wanted: int, sent: int):
    assert generate(replace(CHAT, options={"num_ctx": wanted})).bounds.context_tokens == sent


def test_the_makers_parameters_stand_behind_the_requests():
    parameters = {"temperature": 0.2, "num_predict": 256, "stop": ("<end>",), "unheard_of": 1}
    asked = generate(replace(CHAT, options={"num_predict": 3}), parameters)
    assert (asked.sampling.temperature, asked.bounds.max_tokens, asked.stop) == (0.2, 3, ("<end>",))


@pytest.mark.parametrize(
    ("form", "guide"),
    [("", None), ("json", JsonGuide()), ({"type": "array"}, JsonGuide('{"type":"array"}')), ({}, JsonGuide("{}"))],
)
def test_forms(form: object, guide: JsonGuide | None):
    assert generate(replace(CHAT, fields={"format": form})).sampling.guide == guide


def test_logprobs_keep_alive_and_cutting():
    fields = {"logprobs": True, "top_logprobs": 3, "keep_alive": "1h30m", "truncate": False, "shift": False}
    asked = generate(replace(CHAT, fields=fields))
    assert asked.sampling.logprobs == 3 and asked.keep_alive_seconds == 5400.0
    assert (asked.bounds.truncate, asked.bounds.shift) == (False, False)
    assert generate(replace(CHAT, fields={"logprobs": True})).sampling.logprobs == 0
    assert generate(replace(CHAT, fields={"logprobs": False})).sampling.logprobs is None


def test_an_answer_that_was_begun():
    assert generate(replace(CHAT, begun=Begun((1, 2), 5))).given == (Given((1, 2), 5),)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (replace(CHAT, fields={"tools": [{}]}), "does not support tools"),
        (replace(CHAT, messages=[{"role": "user", "content": "", "images": ["x"]}]), "Multimodal"),
        (replace(CHAT, messages=[{"role": "assistant", "tool_calls": [{}]}]), "does not support tools"),
        (replace(CHAT, fields={"think": True}), '"m" does not support thinking'),
        (replace(PROMPT, fields={"suffix": "end"}), "does not support insert"),
        (replace(PROMPT, fields={"images": ["x"]}), "Multimodal"),
        (replace(PROMPT, fields={"template": "{{ .Prompt }}"}), "template is not supported"),
        (replace(RAW, fields={"raw": True, "system": "x"}), "raw mode"),
        (replace(RAW, fields={"raw": True, "context": [1]}), "raw mode"),
        (replace(CHAT, fields={"top_logprobs": 3}), "needs logprobs"),
        (replace(CHAT, fields={"top_logprobs": 21, "logprobs": True}), "between 0 and 20"),
        (replace(CHAT, fields={"format": "xml"}), "invalid format"),
        (replace(CHAT, fields={"format": [1]}), "invalid format"),
        (replace(CHAT, fields={"format": {"title": "x" * 70_000}}), "larger than"),
        (replace(CHAT, fields={"keep_alive": "soon"}), "keep_alive"),
        (replace(CHAT, options={"mirostat": 2}), "mirostat"),
        (replace(CHAT, options={"tfs_z": 0.5}), "tfs_z"),
        (replace(CHAT, options={"repeat_penalty": 0}), "repeat_penalty"),
        (replace(CHAT, options={"temperature": "hot"}), 'option "temperature" must be of type float32'),
        (replace(CHAT, options={"temperature": math.inf}), "must be of type float32"),
        (replace(CHAT, options={"top_k": True}), "must be of type integer"),
        (replace(CHAT, options={"stop": [1]}), "array of strings"),
    ],
)
def test_what_is_refused_is_refused_as_over_http(call: Call, words: str):
    with pytest.raises(NodeRefused, match=words) as caught:
        asked_of(call, {})
    assert caught.value.status == 400 and not isinstance(caught.value, NodeIncapable)


def test_an_unknown_field_may_be_for_another_node():
    with pytest.raises(NodeIncapable, match="adapter"):
        asked_of(replace(CHAT, fields={"adapter": "x"}), {})


def test_empty_fields_ask_for_nothing():
    fields: dict[str, Any] = {name: None for name in KNOWN_FIELDS} | {"adapter": None, "suffix": "", "images": []}
    assert generate(replace(CHAT, fields=fields)) == generate(CHAT)


@pytest.mark.parametrize("call", [replace(CHAT, messages=[]), replace(PROMPT, prompt="")])
def test_what_needs_no_generating(call: Call):
    assert asked_of(call, {}) == Load("m", (("hold", False),))
    loaded = asked_of(replace(call, fields={"keep_alive": -1}), {})
    assert isinstance(loaded, Load) and dict(loaded.options) == {"hold": False, "keep_alive_seconds": math.inf}
    assert asked_of(replace(call, fields={"keep_alive": 0}), {}) == Unload("m")


def test_renderings():
    assert rendering_of(generate(CHAT), CHAT) == replace(generate(CHAT), render_only=True)
    empty = replace(CHAT, messages=[])
    assert rendering_of(asked_of(empty, {}), empty) == Generate("m", ChatPrompt(()), render_only=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), (0, 0.0), ("0s", 0.0), (5, 5.0), ("5m", 300.0), ("1.5h", 5400.0), ("250ms", 0.25),
     ("-1", math.inf), (-3, math.inf), ("-5m", math.inf), ("10", 10.0)],
)  # fmt: skip
def test_how_long_a_model_stays(value: Any, seconds: float | None):
    assert keep_alive_of(value) == seconds


@pytest.mark.parametrize("value", ["5 minutes", "5x", "m", [], math.nan])
def test_what_is_no_time_to_stay(value: Any):
    with pytest.raises(NodeRefused, match="keep_alive"):
        keep_alive_of(value)


def test_texts_for_vectors():
    fields = {"input": "one", "truncate": False, "dimensions": 8, "keep_alive": 0}
    call = Call("embed", "m", fields=fields, options={"num_ctx": 64})
    assert embed_of(call) == Embed("m", ("one",), 64, False, dimensions=8, keep_alive_seconds=0.0)
    assert embed_of(Call("embed", "m", fields={"input": ["a", "b"]})) == Embed("m", ("a", "b"))
    assert embed_of(Call("embed", "m", fields={"input": ""})) is None
    with pytest.raises(NodeIncapable):
        embed_of(Call("embed", "m", fields={"input": ["a"], "adapter": "x"}))


def test_a_loading_as_gpu_nodes_are_asked_over_http():
    body = {"model": "m", "stream": True, "keep_alive": "5m", "context": 128, "kv_memory": "2GB", "dtype": None}
    options = {"context_tokens": 128, "kv_bytes": "2GB", "keep_alive_seconds": 300.0, "hold": False}
    assert dict(loading_of(body).options) == options
    assert dict(loading_of({"model": "m", "num_gpus": 0}).options)["device"] == "cpu"
    assert dict(loading_of({"model": "m", "num_gpus": 1, "device": "auto"}).options)["device"] == "cuda"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"num_gpus": 2}, "num_gpus must be 0 or 1"),
        ({"num_gpus": 1, "device": "cpu"}, "contradicts"),
        ({"dtype": ["float32"]}, '"dtype"'),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_a_loading_that_cannot_be_meant(body: dict[str, Any], words: str):
    with pytest.raises(NodeRefused, match=words):
        loading_of({"model": "m", **body})
