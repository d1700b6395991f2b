"""Loads a model folder onto a device, and converts GGUF files into such folders. Safetensors only, never pickle.

Everything that transformers or torch raises here becomes one plain sentence (`ModelError`). Runs in the engine's worker
thread or in the fetching process; knows nothing of caches, names or downloads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.vocabulary import TokenizerVocabulary
from gpu_node.errors import ModelError
from gpu_node.gguf_header import read_gguf_header

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

# Words by which models end a turn. Many checkpoints name only one of theirs as the end.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")
# Vocabularies whose merges were learned with every digit on its own; transformers does not split them by itself.
SINGLE_DIGIT_VOCABULARIES = ("smollm",)
# Up to here the weights' way through memory costs more than the product itself, so narrow ones are quicker.
FEW_ROWS = 8


@dataclass(frozen=True, slots=True)
class LoadOptions:
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    threads: int = 0  # 0: torch decides
    template: str = ""  # instead of the model's own


def load_runner(folder: Path, options: LoadOptions) -> Runner:
    """Must be called in the thread that will run the model: the thread count belongs to it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with _quiet_transformers(), _plain_failures(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.chat_template = options.template or tokenizer.chat_template
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(options.dtype, device, folder),
            use_safetensors=True,
            local_files_only=True,
        )
        model = model.to(device).eval()
        wide = device == "cpu" and multiplies_slowly(model.dtype, torch.backends.cpu.get_cpu_capability())
        if wide:
            widen_long_products(model)
        stage = PlainStage(model, PagedAttention(wide))
    return Runner(stage, TokenizerVocabulary(tokenizer, end_ids(model, tokenizer)), Sampler())


class LongProductLinear(torch.nn.Linear):
    """Half-precision weights that meet many rows at once are multiplied in single precision."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.shape[:-1].numel() <= FEW_ROWS:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(input.float(), self.weight.float(), bias).to(input.dtype)


def multiplies_slowly(dtype: torch.dtype, capability: str) -> bool:
    """Without the vector units for them, 16-bit products of matrices take about six times as long as 32-bit ones."""
    return dtype in (torch.bfloat16, torch.float16) and not capability.startswith("AVX512")


def widen_long_products(model: torch.nn.Module) -> None:
    """Prompts are then read at single-precision speed, while single tokens still cost only half the bytes."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = LongProductLinear


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model in `path` to `folder` as bfloat16 safetensors with its tokenizer and template."""
    header = read_gguf_header(path)
    with _quiet_transformers(), _plain_failures(path):
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        if header.pre_tokenizer in SINGLE_DIGIT_VOCABULARIES:
            backend = tokenizer.backend_tokenizer
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        with redirect_stderr(io.StringIO()):  # this one bar heeds no switch
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def choose_device(name: DeviceName) -> str:
    if name == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ModelError("there is no CUDA device that this torch can use; start with --device cpu")
    return "cpu"


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, from all the places where checkpoints say so."""
    found: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[word] for word in TURN_ENDS if word in vocabulary)
    return frozenset(found)


def _dtype(name: DtypeName, device: str, folder: Path) -> torch.dtype:
    wanted = name if name != "auto" else _stored_dtype(folder)
    dtype = getattr(torch, wanted, None)
    if not isinstance(dtype, torch.dtype):
        return torch.float32
    if name == "auto" and device == "cpu" and dtype is torch.float16:
        return torch.bfloat16  # CPUs compute half precision through slow detours
    return dtype


def _stored_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its progress bars and hints are not ours to show; failures still come as exceptions."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _plain_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"{path.name} does not fit into memory") from error
    except ModelError:
        raise
    except Exception as error:  # whatever a foreign file makes of a foreign library
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path.name} cannot be loaded: {reason}") from error
