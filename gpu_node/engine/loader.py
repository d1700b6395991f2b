"""From a model's files to a runner: which device, which numbers, which layers, and what of it people are told.

Invariants: safetensors and GGUF only, never pickle, and no code that comes with a model; beside the weights in their
final place loading holds a bounded piece of them; everything that transformers or torch raises here becomes one plain
sentence. Runs in the engine's thread. Knows no names of models and no downloads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from gpu_node.engine.attention import Attention, PagedAttention
from gpu_node.engine.attention_cuda import CudaAttention, triton_available
from gpu_node.engine.cache_size import CacheOptions, available_bytes
from gpu_node.engine.chain import StageChain
from gpu_node.engine.control_groups import granted_processors
from gpu_node.engine.families import refusal
from gpu_node.engine.graphs import GraphedStage
from gpu_node.engine.layers.recipe import NotCovered
from gpu_node.engine.layers.stage import Share, layered_chain, layered_stage
from gpu_node.engine.plain_loading import fitting_slots, load_converted, load_plain
from gpu_node.engine.products.base import HeldAs, Kernels, Numerics
from gpu_node.engine.products.kernels.availability import available
from gpu_node.engine.runner import NO_MEMORY_TEXTS, Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.stage import Stage
from gpu_node.engine.tokenizers import end_ids, tokenizer_of
from gpu_node.engine.vocabulary import TokenizerVocabulary
from gpu_node.engine.weights.filling import empty_model, missing_from
from gpu_node.engine.weights.gguf_source import GgufSource
from gpu_node.engine.weights.safetensors_source import SafetensorsSource
from gpu_node.engine.weights.views import Progress, SourceView
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeError
from gpu_node.model_folder import ModelFiles, model_files
from gpu_node.vram import WIDENED_BYTES

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
WeightsMode = Literal["auto", "full", "stored", "int8", "int4"]
LayersMode = Literal["auto", "plain"]
Source = GgufSource | SafetensorsSource

# Bytes that a weight takes with its scales.
HELD_BYTES = {"int8": 1.05, "int4": 0.65}
log = logging.getLogger("gpu_node.engine")


@dataclass(frozen=True, slots=True)
class PartOptions:
    """One of the devices that a model is split over, in the order of its layers."""

    layers: int
    budget_bytes: int | None = None  # for weights and cache, which are refused beyond it; None: as much as there is
    device: str = ""  # as torch calls it, "cuda:1"; empty: that of the other options


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`weights`: "full" computes with what the files dequantise to, "stored" with a GGUF file's own codes, "int8" and
    "int4" quantise while reading; "auto" is "stored" for quantised GGUF files, else "full"."""

    device: DeviceName = "auto"
    dtype: DtypeName = "auto"  # of weights that are not quantised, and of the cache
    threads: int = 0  # 0: torch decides, within what a container is granted
    template: str = ""  # instead of the model's own
    weights: WeightsMode = "auto"
    kernels: Kernels = "auto"
    kernel_folder: Path | None = None  # where compiled kernels are kept between starts
    layers: LayersMode = "auto"  # "plain": transformers' own modules even where there are quicker layers
    parts: tuple[PartOptions, ...] = ()  # none: all layers on the one device
    cache: CacheOptions = field(default_factory=CacheOptions)
    progress: Progress | None = None  # called in the loading thread


@dataclass(frozen=True, slots=True)
class Choices:
    """What the options come to on this machine, for these files."""

    device: torch.device
    dtype: torch.dtype
    compute: torch.dtype
    weights: Literal["full", "stored", "int8", "int4"]
    kernels: Kernels
    kernel_folder: Path | None = None

    @property
    def numerics(self) -> Numerics:
        held: HeldAs = self.weights if self.weights in ("int8", "int4") else "given"
        return Numerics(
            compute=self.compute,
            kernels=self.kernels,
            device=self.device,
            held_as=held,
            native_halves=self.device.type == "cpu" and computes_halves(self.dtype),
            kernel_folder=self.kernel_folder,
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    stage: Stage
    layers: str  # for people: whose layers compute, and why not ours
    forms: dict[str, int]  # bytes by form of product
    error: float | None


def load_runner(path: Path, options: LoadOptions) -> Runner:
    """`path` as for `model_files`. Must be called in the thread that will run the model: threads belong to it.

    Raises `ModelError` with one sentence, `DeviceOutOfMemory` when the model or its cache does not fit.
    """
    begun = time.perf_counter()
    own = torch.get_num_threads()
    torch.set_num_threads(options.threads or min(own, granted_processors() or own))
    device = torch.device(choose_device(options.device))
    files = model_files(path)
    with quiet_transformers(), plain_failures(path.name), closing(open_source(files)) as source:
        vocabulary = _vocabulary(files, source, options.template)
        choices = choose(options, source, device)
        check_room(source, choices)
        loaded = _load(source, choices, options)
        summary = _summary(source, choices, loaded, begun)
    log.info("%s", sentence_of(summary))
    # A graph is one device's.
    alike = len({part.device for part in options.parts}) <= 1
    stage = graphed(loaded.stage, options.cache.context) if alike else loaded.stage
    try:
        return Runner(stage, vocabulary, Sampler(), options.cache, summary)
    except BaseException:
        stage.close()  # threads of its kernels would stay
        raise


def load_vocabulary(path: Path, template: str = "") -> TokenizerVocabulary:
    """Of a model whose weights lie elsewhere. Raises `ModelError` with one sentence."""
    files = model_files(path)
    with quiet_transformers(), plain_failures(path.name), closing(open_source(files)) as source:
        return _vocabulary(files, source, template)


def attention_for(device: torch.device, wide: bool) -> Attention:
    """In place on CUDA, where Triton is; by gathering elsewhere."""
    return CudaAttention() if device.type == "cuda" and triton_available() else PagedAttention(wide=wide)


def graphed(stage: Stage, context_tokens: int) -> Stage:
    """Decodes as CUDA graphs where attention reads everything from tensors, as `attention_for`'s does with Triton."""
    return GraphedStage(stage, context_tokens) if stage.device.type == "cuda" and triton_available() else stage


def open_source(files: ModelFiles) -> Source:
    return GgufSource(files.weights) if files.is_gguf else SafetensorsSource(files.weights)


def choose(options: LoadOptions, source: Source, device: torch.device) -> Choices:
    """Raises `ModelError` for a way to hold weights that these files do not offer."""
    quantised = any(source.is_quantised(name) for name in source.names())
    weights = options.weights
    if weights == "auto":
        weights = "stored" if quantised else "full"
    if weights == "stored" and not quantised:
        raise ModelError(f"{source.label} holds no quantised weights that could run as they are stored")
    dtype = choose_dtype(options.dtype, device, source.stored_dtype)
    # Few rows are quickest by compiled kernels, whose activations are in single precision, whatever units there are.
    compiled = options.kernels != "torch" and available()
    wide = dtype is not torch.float32 and device.type == "cpu" and (compiled or not computes_halves(dtype))
    compute = torch.float32 if wide else dtype
    return Choices(device, dtype, compute, weights, options.kernels, options.kernel_folder)


def choose_device(name: DeviceName) -> str:
    if name == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ModelError("there is no CUDA device that this torch can use; start with --device cpu")
    return "cpu"


def choose_dtype(name: DtypeName, device: torch.device, stored: torch.dtype) -> torch.dtype:
    if name != "auto":
        named: torch.dtype = getattr(torch, name)
        return named
    if stored is torch.float16 and device.type == "cpu":
        return torch.bfloat16  # CPUs compute half precision through slow detours
    return stored if stored in (torch.bfloat16, torch.float16) else torch.float32


def computes_halves(dtype: torch.dtype) -> bool:
    """Without units of their own for it, CPUs take about six times as long for 16-bit products as for 32-bit ones."""
    if dtype is not torch.bfloat16:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_room(source: Source, choices: Choices) -> None:
    """Raises `DeviceOutOfMemory` before anything is read: Linux would rather kill the process than refuse memory."""
    needed = sum(held_bytes(source, name, choices) for name in source.names())
    device = choices.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    if needed > free:
        where = "the GPU" if device.type == "cuda" else "memory"
        raise DeviceOutOfMemory(
            f"{source.label} does not fit into {where}: it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        )


def held_bytes(source: Source, name: str, choices: Choices) -> float:
    shape = source.shape(name)
    count = math.prod(shape)
    if choices.weights == "stored" and source.is_quantised(name):
        return max(source.file_bytes(name), count * WIDENED_BYTES.get(source.dtype(name), 0))
    if choices.weights in HELD_BYTES and len(shape) == 2:
        return count * HELD_BYTES[choices.weights]
    return count * choices.dtype.itemsize


def _load(source: Source, choices: Choices, options: LoadOptions) -> Loaded:
    reason = refusal(source.config)
    if reason is not None:
        raise ModelError(f"{source.label} cannot run here: {reason}")
    layers = getattr(source.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if layers > len(source.names()):  # modules for millions of them would be made before one is missed
        raise ModelError(f"{source.label} speaks of {layers} layers and holds {len(source.names())} weights")
    attention = attention_for(choices.device, wide=choices.compute is not choices.dtype)
    view = SourceView(source, choices.dtype, choices.weights == "stored", options.progress)
    model = empty_model(view.config, choices.dtype, choices.device)
    slots = fitting_slots(model, view)
    if slots is None:
        _check_kernels(source, options, "the files name their weights otherwise")
        return _load_converted(model, source, view, choices, attention, options)
    why = "asked for"
    if options.layers == "auto":
        stage = _own_layers(source, view, choices, attention, options)
        if not isinstance(stage, NotCovered):
            return Loaded(stage, "own", stage.holding.forms, stage.holding.error)
        why = stage.reason
    _check_kernels(source, options, why)
    plain = load_plain(model, slots, view, choices.numerics, attention, options.cache.context)
    return Loaded(plain.stage, f"transformers' ({why})", plain.forms, plain.error)


def _own_layers(
    source: Source, view: SourceView, choices: Choices, attention: Attention, options: LoadOptions
) -> StageChain | NotCovered:
    if not options.parts:
        return layered_stage(view, choices.numerics, attention)
    return layered_chain(view, [_share(source, part, choices, options) for part in options.parts])


def _share(source: Source, part: PartOptions, choices: Choices, options: LoadOptions) -> Share:
    own = choose(options, source, torch.device(part.device)) if part.device else choices
    attention = attention_for(own.device, wide=own.compute is not own.dtype)
    return Share(part.layers, own.numerics, attention, part.budget_bytes)


def _check_kernels(source: Source, options: LoadOptions, why: str) -> None:
    """Modules of transformers multiply by torch, and all of them on one device."""
    if options.parts:
        raise ModelError(f"{source.label} cannot be split over devices, only run by transformers' own modules: {why}")
    if options.kernels == "compiled":
        raise ModelError(f"{source.label} cannot run by compiled kernels, only by transformers' own modules: {why}")


def _load_converted(
    model: Any, source: Source, view: SourceView, choices: Choices, attention: Attention, options: LoadOptions
) -> Loaded:
    """Names or shapes are not the model's own."""
    if not isinstance(source, SafetensorsSource):
        raise ModelError(f"{source.label} cannot be loaded: {missing_from(model, source)}")
    if choices.weights in HELD_BYTES:
        raise ModelError(f"{source.label} cannot be quantised while it is read: {missing_from(model, source)}")
    plain = load_converted(source.folder, view, choices.numerics, attention, options.cache.context)
    if options.progress is not None:
        total = sum(source.file_bytes(name) for name in source.names())
        options.progress(total, total)
    return Loaded(plain.stage, "transformers' (the files name their weights otherwise)", plain.forms, plain.error)


def _vocabulary(files: ModelFiles, source: Source, template: str) -> TokenizerVocabulary:
    tokenizer = tokenizer_of(files)
    tokenizer.chat_template = template or tokenizer.chat_template
    return TokenizerVocabulary(tokenizer, end_ids(tokenizer, source.config, *_generation(files)))


def _generation(files: ModelFiles) -> list[Any]:
    """A second place where folders say which tokens end an answer."""
    if files.is_gguf or not (files.weights / "generation_config.json").exists():
        return []
    return [GenerationConfig.from_pretrained(files.weights, local_files_only=True)]


def _summary(source: Source, choices: Choices, loaded: Loaded, begun: float) -> dict[str, Any]:
    count = sum(math.prod(source.shape(name)) for name in source.names())
    return {
        "model": source.label,
        "device": str(choices.device),
        "weights": choices.weights,
        "dtype": _plain_name(choices.dtype),
        "compute": _plain_name(choices.compute),
        "layers": loaded.layers,
        "forms": dict(loaded.forms),
        "weight_bytes": loaded.stage.memory_bytes,
        "bfloat16_bytes": 2 * count,
        "weight_error": loaded.error,
        "load_seconds": round(time.perf_counter() - begun, 3),
    }


def sentence_of(summary: dict[str, Any]) -> str:
    """For the log."""
    size, plain = summary["weight_bytes"], summary["bfloat16_bytes"]
    error = summary["weight_error"]
    return (
        f"{summary['model']}: weights {summary['weights']}, {size / 1e6:.0f} MB"
        + f" ({size / max(plain, 1):.0%} of bfloat16)"
        + (f", {error:.2%} off" if error is not None else "")
        + f"; {', '.join(summary['forms']) or summary['dtype']}; layers {summary['layers']}"
        + f"; read in {summary['load_seconds']:.1f} s"
    )


def _plain_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def quiet_transformers() -> Iterator[None]:
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
def plain_failures(name: str) -> Iterator[None]:
    """Whatever loading raises becomes `ModelError` or `DeviceOutOfMemory`, in one sentence about `name`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceOutOfMemory(f"{name} does not fit into memory") from error
    except NodeError:
        raise
    except Exception as error:  # whatever a foreign file makes of a foreign library
        if any(text in str(error) for text in NO_MEMORY_TEXTS):
            raise DeviceOutOfMemory(f"{name} does not fit into memory") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{name} cannot be loaded: {reason}") from error
