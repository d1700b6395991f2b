"""From an order to a part of a model in memory: its own layers straight from the files, or out of the part before it.

Invariants: what an earlier part has of the same files in the same numbers is neither read nor held again; kernels are
opened once and shared by all parts of a worker; memory is asked about before it is taken. Must not know links.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpu_node.engine.cache_size import available_bytes
from gpu_node.engine.control_groups import granted_processors
from gpu_node.engine.families import refusal
from gpu_node.engine.layers.part import Assembled, LayeredPart
from gpu_node.engine.layers.recipe import NotCovered, Recipe, recipe_of
from gpu_node.engine.layers.stage import Share, SharedKernels, held_weights, layered_part, part_weights
from gpu_node.engine.loader import (
    Choices,
    LoadOptions,
    Source,
    attention_for,
    choose,
    held_bytes,
    open_source,
    plain_failures,
    quiet_transformers,
)
from gpu_node.engine.weights.views import SourceView
from gpu_node.errors import DeviceOutOfMemory, ModelError
from gpu_node.model_folder import ModelFiles, model_files
from gpu_node.pipeline.orders import LayerCache, Load, Loaded, LoadWords

Told = Callable[[int, int], None]  # bytes of the part's files that are there, and in all
# Before anybody has said how many.
TORCHS_OWN = torch.get_num_threads()
# Files that change while they are held are other files; names, sizes and times tell.
Marks = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPart:
    order: Load
    part: LayeredPart
    marks: Marks
    compute: str
    reused_layers: int
    read_bytes: int
    seconds: float

    @property
    def answer(self) -> Loaded:
        part, holding = self.part, self.part.holding
        layers = tuple(
            LayerCache(each.kv_heads, each.key_dim, each.value_dim, each.window) for each in part.layer_shapes
        )
        return Loaded(
            self.order.number, holding.bytes, part.token_bytes, part.hidden_size, part.vocabulary_size,
            _plain_name(part.dtype), self.compute, str(part.device), layers, tuple(holding.forms.items()),
            holding.errors, self.reused_layers, self.read_bytes, round(self.seconds, 3),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """What is left of a part that was loaded before."""

    order: Load
    marks: Marks
    model: Assembled

    def serves(self, order: Load, marks: Marks) -> bool:
        had = replace(self.order.load, threads=order.load.threads)  # which change no weight
        return self.order.path == order.path and had == order.load and self.marks == marks


class PartLoader:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._kernels = SharedKernels()

    def load(self, order: Load, earlier: Earlier | None, told: Told, allow: Callable[[int], None]) -> LoadedPart:
        """`told` is called as bytes come, `allow` as for `layered_part`; what they raise ends the loading.

        Raises `ModelError`, `DeviceOutOfMemory`."""
        begun = time.perf_counter()
        path = Path(order.path)
        set_threads(order.load.threads)
        with quiet_transformers(), plain_failures(path.name):
            files = model_files(path)
            with closing(open_source(files)) as source:
                options = _options(order.load)
                choices = choose(options, source, torch.device(order.load.device))
                recipe, marks = _recipe(source, order), marks_of(files)
                had = earlier.model if earlier is not None and earlier.serves(order, marks) else None
                made = _Making(order, source, choices, recipe, told)
                part = made.part(self._kernels, had, allow)
        reused = sum(had.weights(layer) is not None for layer in range(order.first, order.behind)) if had else 0
        seconds = time.perf_counter() - begun
        return LoadedPart(order, part, marks, _plain_name(choices.compute), reused, made.read_bytes, seconds)

    def close(self) -> None:
        """After all parts are closed."""
        self._kernels.close()


class _Making:
    def __init__(self, order: Load, source: Source, choices: Choices, recipe: Recipe, told: Told) -> None:
        self._order, self._source, self._choices, self._recipe = order, source, choices, recipe
        self._told = told
        self._there = self._total = self.read_bytes = 0

    def part(self, kernels: SharedKernels, had: Assembled | None, allow: Callable[[int], None]) -> LayeredPart:
        order, choices, source = self._order, self._choices, self._source
        numerics = kernels.given(choices.numerics)
        if had is not None and not had.serves(self._recipe, numerics):
            had = None
        names = set(part_weights(source, self._recipe, (order.first, order.behind)))
        missing = names if had is None else names - held_weights(source, had)
        self._total = sum(source.file_bytes(name) for name in names)
        self._there = self._total - sum(source.file_bytes(name) for name in missing)
        self._check_room(missing)
        self._told(self._there, self._total)
        view = SourceView(source, choices.dtype, choices.weights == "stored", self._tell)
        attention = attention_for(choices.device, wide=choices.compute is not choices.dtype)
        share = Share(order.behind - order.first, numerics, attention, order.budget_bytes)
        return layered_part(view, self._recipe, (order.first, order.behind), share, had, allow)

    def _tell(self, done: int, _: int) -> None:
        self.read_bytes = done
        self._told(min(self._there + done, self._total), self._total)

    def _check_room(self, missing: set[str]) -> None:
        """Linux would rather kill the process than refuse memory."""
        device = self._choices.device
        needed = sum(held_bytes(self._source, name, self._choices) for name in missing)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
        if needed > free:
            span = f"layers {self._order.first} to {self._order.behind - 1} of {self._source.label}"
            raise DeviceOutOfMemory(f"{span} take {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free")


def marks_of(files: ModelFiles) -> Marks:
    weights = files.weights
    found = sorted(weights.iterdir()) if weights.is_dir() else [weights]
    states = [(path.name, path.stat()) for path in found if path.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def set_threads(told: int) -> None:
    """Of torch, for the calling thread and those that begin after it. 0: as many as it began with, where a container
    grants them."""
    torch.set_num_threads(told or min(TORCHS_OWN, granted_processors() or TORCHS_OWN))


def _options(words: LoadWords) -> LoadOptions:
    folder = None if words.kernel_folder is None else Path(words.kernel_folder)
    return LoadOptions(
        dtype=words.dtype, weights=words.weights, kernels=words.kernels, kernel_folder=folder, threads=words.threads
    )


def _recipe(source: Source, order: Load) -> Recipe:
    reason = refusal(source.config)
    if reason is not None:
        raise ModelError(f"{source.label} cannot run here: {reason}")
    recipe = recipe_of(source.config)
    if isinstance(recipe, NotCovered):
        raise ModelError(f"{source.label} cannot be split over devices: {recipe.reason}")
    if not order.first < order.behind <= recipe.layers:
        raise ModelError(f"{source.label} has {recipe.layers} layers, and no {order.first} to {order.behind - 1}")
    return recipe


def _plain_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
