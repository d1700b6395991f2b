"""Tiny models of every family, and their GGUF files as llama.cpp's converter would write them.

Names come from the `gguf` package's own table and values from the untouched transformers model, so nothing here shares
a line with the code that reads the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# Architecture of the file, configuration class of the model, and what differs from SIZES.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", {"tie_word_embeddings": True}),
    "llama-wide-heads": ("llama", "LlamaConfig", {"head_dim": 16}),
    "llama-biased": ("llama", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", "LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 64}),
    "mixtral": ("llama", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", "Qwen2Config", {"use_sliding_window": False}),
    "qwen3": ("qwen3", "Qwen3Config", {"head_dim": 16, "use_sliding_window": False}),
    "qwen3-moe": ("qwen3moe", "Qwen3MoeConfig", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "use_sliding_window": False,
    }),
    "gemma2": ("gemma2", "Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3", "Gemma3TextConfig", {
        "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7,
    }),
    "phi3": ("phi3", "Phi3Config", {}),
    "granite": ("granite", "GraniteConfig", {
        "attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    }),
    "olmo2": ("olmo2", "Olmo2Config", {}),
    "smollm3": ("smollm3", "SmolLM3Config", {"num_hidden_layers": 5}),
    "gpt2": ("gpt2", "GPT2Config", {}),
    "gptneox": ("gptneox", "GPTNeoXConfig", {"num_key_value_heads": 4}),
}  # fmt: skip
Encode = Callable[[str, np.ndarray], tuple[np.ndarray, gguf.GGMLQuantizationType]]


def tiny_model(family: str, **changes: Any) -> Any:
    _, config_class, own = FAMILIES[family]
    sizes = GPT2 if config_class == "GPT2Config" else SIZES
    config = getattr(transformers, config_class)(**{**sizes, **own, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                "norm" in name or "ln_" in name or name.endswith("bias")
            ):  # else all ones and zeros: no test of their place
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def plain(name: str, values: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    return values, gguf.GGMLQuantizationType.F32


def quantising(kind: str) -> Encode:
    """Matrices of whole blocks in this type, everything else as it is."""
    wanted = gguf.GGMLQuantizationType[kind]

    def encode(name: str, values: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        if values.ndim < 2 or values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] or "norm" in name:
            return plain(name, values)
        return gguf.quantize(values, wanted), wanted

    return encode


def write_gguf(model: Any, family: str, path: Path, encode: Encode = plain, **changed: Any) -> Path:
    architecture = FAMILIES[family][0]
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, model.config, architecture, family, changed)
    writer.add_token_list([f"t{n}" for n in range(model.config.vocab_size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in _tensors(model, architecture):
        data, kind = encode(name, values)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, config: Any, architecture: str, family: str, changed: dict[str, Any]) -> None:
    sizes = config.to_dict()
    heads = config.num_attention_heads
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": sizes.get("intermediate_size") or sizes.get("n_inner"),
        "attention.head_count": heads,
        "attention.head_count_kv": sizes.get("num_key_value_heads") or heads,
        "attention.key_length": sizes.get("head_dim"),
        "attention.layer_norm_rms_epsilon": sizes.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": sizes.get("layer_norm_eps") or sizes.get("layer_norm_epsilon"),
        "attention.sliding_window": sizes.get("sliding_window"),
        "attn_logit_softcapping": sizes.get("attn_logit_softcapping"),
        "final_logit_softcapping": sizes.get("final_logit_softcapping"),
        "attention.scale": sizes.get("attention_multiplier"),
        "embedding_scale": sizes.get("embedding_multiplier"),
        "residual_scale": sizes.get("residual_multiplier"),
        "logit_scale": sizes.get("logits_scaling"),
        "expert_count": sizes.get("num_local_experts") or sizes.get("num_experts"),
        "expert_used_count": sizes.get("num_experts_per_tok"),
        "expert_feed_forward_length": sizes.get("moe_intermediate_size"),
        **_rotary(config, family),
        **changed,
    }
    if sizes.get("use_parallel_residual") is not None:
        writer.add_bool(f"{architecture}.use_parallel_residual", sizes["use_parallel_residual"])
    for key, value in values.items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)


def _rotary(config: Any, family: str) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if "rope_theta" not in rope:
        return {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(head * rope.get("partial_rotary_factor", 1.0))
    return {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": turned}


def _tensors(model: Any, architecture: str) -> list[tuple[str, np.ndarray]]:
    config, found = model.config, []
    enum = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(enum, config.num_hidden_layers)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        standard = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
        found.append(("rope_freqs.weight", (standard / model.model.rotary_emb.inv_freq).numpy()))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        layer = name.split(".")[2] if ".layers." in name or ".h." in name else ""
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            found += [
                (f"blk.{layer}.ffn_gate_exps.weight", gate.copy()),
                (f"blk.{layer}.ffn_up_exps.weight", up.copy()),
            ]
            continue
        if name.endswith("experts.down_proj"):
            found.append((f"blk.{layer}.ffn_down_exps.weight", values))
            continue
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None and name.endswith("mlp.gate.weight"):
            mapped = f"blk.{layer}.ffn_gate_inp.weight"
        if mapped is None and name == "lm_head.weight":
            mapped = "output.weight"
        assert mapped is not None, name
        found.append((mapped, np.ascontiguousarray(_converted(mapped, values, architecture, config))))
    return found


def _converted(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    if architecture in ("llama", "granite", "smollm3") and ("attn_q." in name or "attn_k." in name):
        heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
        return (
            values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        )
    if architecture in ("gemma2", "gemma3") and "norm" in name:
        return values + 1
    if architecture == "gptneox" and "attn_qkv" in name:
        split = values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:])
        return split.swapaxes(0, 1).reshape(values.shape)
    if architecture == "gpt2" and values.ndim == 2 and ("attn_" in name or "ffn_" in name):
        return values.T
    return values
