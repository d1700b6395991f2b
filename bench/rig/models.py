"""The models that are measured, written once into the cache: one with random weights, and the default one unpacked.

For speed a model's shape counts, not what it says. Peers that read no GGUF get what the file dequantises to.
"""

from __future__ import annotations

from pathlib import Path

from gpu_node.model_store import default_cache


def default_gguf() -> Path | None:
    """Where `python -m gpu_node.model_store fetch default` has put it."""
    return next(default_cache({}).glob("models/smollm2-135m-*/*.gguf"), None)


def write_random_llama(folder: Path) -> Path:
    """29.5 million parameters in float32: hidden 512, 8 layers, 8 heads, FFN 1376, vocabulary 4096."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    _write_tokenizer(folder, config.vocab_size)
    return folder


def unpack_gguf(path: Path, folder: Path) -> Path:
    """The same weights in bfloat16 as safetensors, by transformers' own reader."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, size: int) -> None:
    """Words `w0` to `w4095`: enough for engines that insist on a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2").save_pretrained(
        folder
    )
