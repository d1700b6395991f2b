"""Small random models of every family that the engine is held to, with weights wide enough that answers vary.

The same name gives the same weights. Nothing is fetched; windows are shorter than the prompts of the tests.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 211
WINDOW = 7
LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 60,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
}

# Class name in transformers, and what its config has besides `SIZES`.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("MistralForCausalLM", {"sliding_window": WINDOW, "head_dim": 12}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-sliding": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": SLIDING},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": SLIDING},
    ),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": WINDOW}),
    "phi3-long": ("Phi3ForCausalLM", {"rope_parameters": LONG, "original_max_position_embeddings": 60}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}),
    "gpt2-scaled": (
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "granite": (
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    ),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
    "mixtral": ("MixtralForCausalLM", EXPERTS),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "gpt-oss": ("GptOssForCausalLM", {**EXPERTS, "sliding_window": WINDOW, "head_dim": 8, "layer_types": SLIDING}),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        {
            **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8},
            **{"qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
            **{"topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
        },
    ),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "stablelm": ("StableLmForCausalLM", {}),
}  # fmt: skip
# With these weights the answers vary most.
SEEDS = {"gpt2": 11, "gpt2-scaled": 16, "gpt-neox": 13, "olmo2": 5, "opt": 6, "qwen3-moe": 6}


def tiny_family(name: str, **changes: Any) -> Any:
    """A model of transformers in single precision, with `eager` attention: soft caps and sinks are in it."""
    import torch
    import transformers

    class_name, special = FAMILIES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**{**SIZES, **special, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(SEEDS.get(name, 1))
    model = model_class(config).eval()
    _widen(model)
    model.generation_config.eos_token_id = None
    return model


def _widen(model: Any) -> None:
    """Norms, biases and sinks begin as ones and zeros, behind which a missing one would hide."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
