"""Tokenizers: from a model's folder, or built from what a GGUF file says and then kept in the store's folder for it.

Invariant: a tokenizer that was built gives the ids that llama.cpp gives for the same file. Knows no weights; must not
import torch itself.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, TokenizersBackend

from gpu_node.errors import ModelError
from gpu_node.gguf_header import GgufHeader, read_gguf_header
from gpu_node.model_folder import ModelFiles

# Words by which models end a turn. Many checkpoints name only one of theirs as the end.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")
# Vocabularies whose merges were learned with every digit on its own; transformers does not split them by itself.
SINGLE_DIGIT_VOCABULARIES = ("smollm",)
TOKENIZER_FILE = "tokenizer.json"
ARRAYS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "scores", "token_type"))
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_in(folder: Path) -> Any:
    """Raises whatever transformers raises for a folder without a whole tokenizer. Code in the folder is never run."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenizer_of_gguf(path: Path) -> Any:
    """Takes seconds for large vocabularies. Raises `ModelError` for a file that describes none."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    header = read_gguf_header(path, ARRAYS)
    if "tokenizer.ggml.tokens" not in header.values:
        raise ModelError(f"{path.name} holds no tokenizer")
    backend, more = convert_gguf_tokenizer(header.architecture, _vocabulary(header))
    tokenizer = TokenizersBackend(tokenizer_object=backend, **_settings(header), **more)
    if header.pre_tokenizer in SINGLE_DIGIT_VOCABULARIES:
        inner = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])
    return tokenizer


def tokenizer_of(files: ModelFiles) -> Any:
    """Builds one at most once for a folder of the store. Raises as the two above do."""
    if not files.is_gguf or (files.tokenizer is not None and (files.tokenizer / TOKENIZER_FILE).exists()):
        assert files.tokenizer is not None, "a folder of safetensors holds its tokenizer"
        return tokenizer_in(files.tokenizer)
    tokenizer = tokenizer_of_gguf(files.weights)
    if files.tokenizer is not None:
        with suppress(OSError):  # a cache that cannot be written costs the same seconds again, no more
            _keep(tokenizer, files.tokenizer)
    return tokenizer


def _keep(tokenizer: Any, folder: Path) -> None:
    """The file by which it is found comes last, so that a process that is killed leaves none or a whole one."""
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=folder) as partial:
        tokenizer.save_pretrained(partial)
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == TOKENIZER_FILE):
            os.replace(path, folder / path.name)


def end_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Every token that ends an answer, from all the places where checkpoints say so."""
    found: set[int] = set()
    for source in (tokenizer, *configs):
        value = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[word] for word in TURN_ENDS if word in vocabulary)
    return frozenset(found)


def _vocabulary(header: GgufHeader) -> dict[str, Any]:
    """By the names that transformers' builders use."""
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING

    found = {}
    for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items():
        value = header.values.get(f"tokenizer.{key}")
        if value is not None:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _settings(header: GgufHeader) -> dict[str, Any]:
    values, tokens = header.values, header.values["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {"chat_template": values.get("tokenizer.chat_template")}
    for key in ("add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{key}" in values:
            settings[key] = values[f"tokenizer.ggml.{key}"]
    if values.get("tokenizer.ggml.model") == "llama":
        # Older files say nothing, and llama.cpp then begins a text of such a vocabulary with its first token.
        settings.setdefault("add_bos_token", True)
    for word, key in _SPECIAL.items():
        token = values.get(f"tokenizer.ggml.{key}_token_id")
        settings[word] = tokens[token] if isinstance(token, int) and token < len(tokens) else None
    return settings
