"""Which models are let in, and the reasons others hear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from gpu_node.engine.attention import AttentionTerms, PagedAttention
from gpu_node.engine.families import Plug, freeze_positions, model_refusal, plug_in, refusal
from gpu_node.engine.stage import PlainStage
from gpu_node.errors import ModelError
from tests.fakes.tiny_families import FAMILIES, SLIDING, VOCABULARY, WINDOW, tiny_family

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder"),
        (transformers.Qwen3NextConfig(), "layers of type linear_attention"),
        (transformers.Llama4TextConfig(), "layers of type chunked_attention"),
        (transformers.FalconConfig(alibi=True), "ALiBi"),
        (transformers.BertConfig(is_decoder=True, add_cross_attention=True), "other than its own text"),
        (transformers.Gemma3TextConfig(use_bidirectional_attention=True), "come after"),
    ],
)
def test_a_config_alone_may_say_no(config: Any, reason: str) -> None:
    assert reason in str(refusal(config))


def model_of(name: str, **values: Any) -> Any:
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**{**SMALL, **values})).eval()


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("MambaForCausalLM", {}, "linear_attention"),
        ("RwkvForCausalLM", {}, "recurrent"),
        ("BloomForCausalLM", {"n_head": 2}, "cannot be replaced"),
        ("FalconForCausalLM", {"num_attention_heads": 2}, "cannot be replaced"),
        (
            "GPTNeoForCausalLM",
            {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
            "replaced",
        ),
    ],
)
def test_a_class_may_say_no(name: str, values: dict[str, Any], reason: str) -> None:
    if name == "GPTNeoForCausalLM":
        model = transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(vocab_size=50, hidden_size=16, **values))
    else:
        model = model_of(name, **values)
    assert reason in str(model_refusal(model))
    with pytest.raises(ModelError, match="cannot run here"):
        PlainStage(model, PagedAttention())


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_speaks_against_the_families_that_work(name: str) -> None:
    assert model_refusal(tiny_family(name, num_hidden_layers=3)) is None


def answered(layer: int, query: Any, key: Any, value: Any, terms: AttentionTerms) -> Any:
    return query.new_zeros(*query.shape[:2], value.shape[-1])


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral", [WINDOW, WINDOW, WINDOW]),
        ("gemma3", [WINDOW if kind == "sliding_attention" else None for kind in SLIDING]),
        ("qwen2", [None, None, None]),
    ],
)
def test_windows_are_seen_layer_by_layer(name: str, windows: list[int | None]) -> None:
    shapes = plug_in(tiny_family(name), Plug(answered))
    assert [shape.window for shape in shapes] == windows


def test_keys_and_values_may_have_different_sizes() -> None:
    shapes = plug_in(tiny_family("deepseek-v3"), Plug(answered))
    assert [(shape.kv_heads, shape.key_dim, shape.value_dim) for shape in shapes] == [(4, 16, 12)] * 3


def test_terms_are_the_models_own() -> None:
    heard: list[AttentionTerms] = []

    def listen(layer: int, query: Any, key: Any, value: Any, terms: AttentionTerms) -> Any:
        heard.append(terms)
        return answered(layer, query, key, value, terms)

    given = torch.tensor([[1, 2]])
    for name in ("gemma2", "granite", "gpt-oss"):
        model = tiny_family(name)
        plug_in(model, Plug(listen))
        with torch.inference_mode():
            model(given, use_cache=False)
    capped, scaled, sunk = heard[0], heard[3], heard[6]
    assert capped.soft_cap == 1.5 and capped.scale == 8**-0.5 and capped.sinks is None
    assert scaled.scale == 0.2 and scaled.plain
    assert sunk.sinks is not None and sunk.sinks.shape == (4,)


def test_attention_that_depends_on_more_is_refused() -> None:
    model = tiny_family("llama")
    usual = type(model.model.layers[0].self_attn).forward

    class Biased(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        def forward(self, *args: Any, **options: Any) -> Any:
            return usual(self, *args, position_bias=torch.zeros(1), **options)

    model.model.layers[1].self_attn.__class__ = Biased
    with pytest.raises(ModelError, match="depends on position_bias"):
        plug_in(model, Plug(answered))


def test_a_layer_that_computes_attention_by_itself_is_noticed() -> None:
    model = tiny_family("llama")

    class Own(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        def forward(self, hidden_states: Any, **options: Any) -> Any:
            return hidden_states, None

    model.model.layers[1].self_attn.__class__ = Own
    with pytest.raises(ModelError, match="2 of its 3 layers"):
        plug_in(model, Plug(answered))


def test_sliding_layers_must_say_how_far() -> None:
    model = tiny_family("gemma3")
    model.model.layers[2].self_attn.sliding_window = None
    with pytest.raises(ModelError, match="how far they look back"):
        plug_in(model, Plug(answered))


def test_two_models_do_not_disturb_each_other() -> None:
    one, other = tiny_family("llama"), tiny_family("qwen3")
    seen: list[str] = []

    def told(name: str) -> Any:
        def attend(*args: Any) -> Any:
            seen.append(name)
            return answered(*args)

        return attend

    plug_in(one, Plug(told("one")))
    plug_in(other, Plug(told("other")))
    with torch.inference_mode():
        one(torch.tensor([[1, 2]]), use_cache=False)
    assert seen == ["one"] * 3


def test_dynamic_scaling_stays_at_its_first_frequencies() -> None:
    changed = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
    model = tiny_family("llama", max_position_embeddings=16, **changed)
    before = model.model.rotary_emb.inv_freq.clone()
    freeze_positions(model, 1000)
    with torch.inference_mode():
        model(torch.arange(40)[None] % VOCABULARY, use_cache=False)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
