"""A loaded model as the engine sees it: a step in, choices and arrays out.

Invariants: copies of blocks happen before rows; nothing of a step is kept but what lies in the cache's slots, so that a
step may be repeated; running out of memory is told as such and leaves the runner usable. Called from one thread. Must
not know sequences, schedules or text.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import batch_of
from gpu_node.engine.cache_size import CacheOptions, block_count, cpu_room, cuda_room
from gpu_node.engine.stage import Stage
from gpu_node.engine.step import CacheShape, Choice, Pick, Step, StepByStep, StepResult
from gpu_node.engine.step_shares import StepShare, unpicked
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import DeviceOutOfMemory

# How CPU allocators say what a GPU's say with an exception of their own.
NO_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "alloc_cpu")


class Chooser(Protocol):
    """What the runner needs of a sampler."""

    def sample(self, logits: Tensor, picks: Sequence[Pick], first_rows: Sequence[int]) -> tuple[Choice, ...]:
        """`logits` [rows, vocabulary]; `first_rows[i]`: where the rows of pick i begin."""
        ...


class Runner(StepByStep):
    def __init__(
        self,
        stage: Stage,
        vocabulary: Vocabulary,
        sampler: Chooser,
        cache: CacheOptions | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes the memory for keys and values. Raises `DeviceOutOfMemory` when there is none."""
        super().__init__()
        self._stage, self._sampler = stage, sampler
        self._options = cache or CacheOptions()
        self._summary = dict(summary or {})
        self._device, self._dtype = stage.device, stage.dtype
        self.vocabulary = vocabulary
        self._block_bytes = stage.token_bytes * self._options.block_tokens
        self._block_count: int | None = None
        most = stage.most_blocks(self._options.block_tokens)
        self._take_cache(block_count(self._options, self._block_bytes, *_room(stage.device), most))

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def dtype(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    @property
    def memory_bytes(self) -> int:
        return self._stage.memory_bytes

    @property
    def cache(self) -> CacheShape:
        assert self._block_count is not None, "a closed runner has no cache"
        windows = [shape.window for shape in self._stage.layer_shapes]
        bounded = [window for window in windows if window is not None]
        window = max(bounded) if bounded and len(bounded) == len(windows) else None
        return CacheShape(self._options.block_tokens, self._block_count, self._block_bytes, window)

    @property
    def embedding_length(self) -> int:
        return self._stage.hidden_size

    @property
    def summary(self) -> dict[str, Any]:
        cache = self.cache
        size = {
            "cache_dtype": self.dtype,
            "cache_blocks": cache.block_count,
            "cache_tokens": cache.block_count * cache.block_tokens,
            "cache_bytes": cache.block_count * cache.block_bytes,
        }
        return {**self._summary, **size}

    @torch.inference_mode()
    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        """As `ModelRunner.run`. Rows with output that no pick names come back as arrays."""
        with _memory_told():
            assert self._block_count is not None, "a closed runner runs nothing"
            self._stage.copy_blocks(step.copies)
            choices: tuple[Choice, ...] = ()
            arrays: dict[int, Any] = {}
            for share in StepShare.of(step.rows):
                rows = [step.rows[at] for at in share.indices]
                found = self._stage.forward(batch_of(rows, self._options.block_tokens, self._device), share.want)
                places = share.places(step.rows)
                arrays.update(unpicked(found, step.rows, places, {pick.row for pick in picks}))
                if share.want == "logits" and picks:
                    choices = self._sampler.sample(found, picks, [places[pick.row] for pick in picks])
            return StepResult(choices, arrays)

    def shrink_cache(self, block_count: int) -> CacheShape:
        """Raises `DeviceOutOfMemory` when not even so many blocks fit; the runner can then only be closed."""
        self._take_cache(block_count)
        return self.cache

    def close(self) -> None:
        """Give the memory back; the runner is of no use afterwards."""
        self._block_count = None
        self._stage.close()
        _free(self._device)

    def _take_cache(self, count: int) -> None:
        if self._block_count is not None:
            self._stage.drop_cache()
            _free(self._device)
        with _memory_told():
            self._stage.take_cache(self._options.block_tokens, count)
        self._block_count = count


def _room(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return cpu_room()
    torch.cuda.empty_cache()
    return cuda_room(*torch.cuda.mem_get_info(device))


@contextmanager
def _memory_told() -> Iterator[None]:
    """torch has an exception of its own for GPUs, and plain ones with words in them for CPUs."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceOutOfMemory("the device ran out of memory") from error
    except RuntimeError as error:
        if any(text in str(error) for text in NO_MEMORY_TEXTS):
            raise DeviceOutOfMemory("the device ran out of memory") from error
        raise


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # glibc keeps freed weights for itself unless asked; others have no such call
        return
    trim(0)
