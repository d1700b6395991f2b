"""What a file's metadata says about the arithmetic, and what cannot be said is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from gpu_node.errors import ModelError
from gpu_node.gguf_config import ARCHITECTURES, architecture_of, config_values, llama3_scaling
from gpu_node.gguf_header import GgufHeader, GgufTensor

SIZES = {
    "context_length": 4096, "embedding_length": 64, "block_count": 12, "feed_forward_length": 128,
    "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def header(architecture: str = "llama", tensors: tuple[str, ...] = (), **values: Any) -> GgufHeader:
    own = {f"{architecture}.{key}": value for key, value in {**SIZES, **values}.items()}
    entries = tuple(GgufTensor(name, 0, (100, 64), 0) for name in ("token_embd.weight", *tensors))
    return GgufHeader({"general.architecture": architecture, **own, "tokenizer.ggml.eos_token_id": 2}, {}, entries)


def values(architecture: str = "llama", **changes: Any) -> Mapping[str, Any]:
    return config_values(header(architecture, **changes))


def test_sizes_come_from_the_file() -> None:
    found = values(**{"attention.head_count_kv": 2})
    assert found["num_key_value_heads"] == 2
    assert values()["num_key_value_heads"] == 4, "as many as heads where nothing is said"
    assert (found["vocab_size"], found["max_position_embeddings"], found["num_hidden_layers"]) == (100, 4096, 12)
    assert found["tie_word_embeddings"] is True
    assert config_values(header(tensors=("output.weight",)))["tie_word_embeddings"] is False
    assert (found["eos_token_id"], found["bos_token_id"]) == (2, None)


def test_token_ids_beyond_the_vocabulary_are_none() -> None:
    wide = header()
    wide = GgufHeader({**wide.values, "tokenizer.ggml.bos_token_id": 100}, {}, wide.tensors)
    assert config_values(wide)["bos_token_id"] is None


@pytest.mark.parametrize("missing", ["context_length", "embedding_length", "block_count", "attention.head_count"])
def test_a_size_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ModelError, match=f"the GGUF file lacks llama.{missing}"):
        values(**{missing: None})


@pytest.mark.parametrize(
    "sizes",
    [{"block_count": 0}, {"block_count": 1 << 32}, {"embedding_length": "wide"}, {"rope.dimension_count": 7}],
)
def test_sizes_of_no_model_are_refused(sizes: dict[str, Any]) -> None:
    wrong = {"attention.head_count": 128, **sizes}  # so that a head has no numbers
    with pytest.raises(ModelError, match="the GGUF file"):
        values("gemma3", **wrong)


def test_sizes_by_layer_are_one_number_or_refused() -> None:
    assert values(**{"attention.head_count_kv": (2,) * 12})["num_key_value_heads"] == 2
    with pytest.raises(ModelError, match=r"gives each layer its own attention\.head_count_kv"):
        values(**{"attention.head_count_kv": (2, 4) * 6})


def test_an_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="'mamba' are not supported; known: gemma2, gemma3"):
        architecture_of(header("mamba"))


def test_every_architecture_is_a_model_of_transformers() -> None:
    from transformers import AutoConfig

    for name in ARCHITECTURES:
        sizes = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32} if "moe" in name else {}
        assert AutoConfig.for_model(**config_values(header(name, **sizes))) is not None


def test_rotary_scaling_is_taken_over_or_refused() -> None:
    assert values(**{"rope.freq_base": 5e5})["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}
    linear = values(**{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})["rope_parameters"]
    assert (linear["rope_type"], linear["factor"]) == ("linear", 4.0)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 1024}
    assert values("qwen2", **yarn)["rope_parameters"]["original_max_position_embeddings"] == 1024
    with pytest.raises(ModelError, match="rotary scaling 'odd'"):
        values(**{"rope.scaling.type": "odd", "rope.scaling.factor": 4.0})


def test_part_of_a_head_that_turns_is_a_share() -> None:
    assert values("gptneox", **{"rope.dimension_count": 4})["rope_parameters"]["partial_rotary_factor"] == 0.25


def test_factors_of_long_contexts() -> None:
    scaling = {"rope.scaling.original_context_length": 1024, "rope.scaling.attn_factor": 1.19}
    factors = {"rope_factors_long.weight": [4.0] * 8, "rope_factors_short.weight": [1.0] * 8}
    rope = config_values(header("phi3", **scaling), factors)["rope_parameters"]
    assert (rope["rope_type"], rope["long_factor"], rope["factor"]) == ("longrope", [4.0] * 8, 4.0)
    assert rope["attention_factor"] == 1.19


def test_llama3_factors_are_recognised_by_their_scheme() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(head_dim=64, rope_parameters=settings, max_position_embeddings=131072)
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    stored = (plain / LlamaRotaryEmbedding(config).inv_freq).tolist()
    found = llama3_scaling(stored, 500000.0)
    assert {**found, "rope_theta": 500000.0} == pytest.approx(settings)
    assert llama3_scaling([1.0] * 32, 500000.0) == {}
    with pytest.raises(ModelError, match="no scheme that is known"):
        llama3_scaling([1.0] * 16 + [5.0] * 16, 500000.0)


def test_constants_of_the_large_gemmas() -> None:
    assert values("gemma2", block_count=46)["query_pre_attn_scalar"] == 16
    assert values("gemma2", **{"attention.key_length": 32})["query_pre_attn_scalar"] == 32
    gemma3 = values("gemma3", **{"attention.key_length": 32, "rope.scaling.factor": 8.0})
    assert gemma3["layer_types"].count("full_attention") == 2
    assert gemma3["rope_parameters"]["full_attention"]["rope_type"] == "linear"
    assert gemma3["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}
