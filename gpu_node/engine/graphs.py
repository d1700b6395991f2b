"""Decode steps as CUDA graphs: a stage that captures each batch size once and replays it from then on.

Invariants: a replay computes what the stage would have computed; only steps in which every row decodes one token are
replayed, all others go to the stage itself; a model whose forward cannot be captured simply runs without. Batches are
filled up to the next captured size with copies of their first row, which write the same numbers to the same slot. The
stage's attention must take everything that changes from the batch's tensors: `CudaAttention` does, `PagedAttention`
does not. Must not know models, nor what a sequence is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.stage import Stage
from gpu_node.engine.step import BlockCopy, Output

log = logging.getLogger("gpu_node.engine")

# Larger batches are bound by arithmetic, no longer by starting kernels.
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


class Graph(Protocol):
    """Something captured: after `replay`, the captured output tensor holds the new numbers."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Graph
    batch: Batch  # its tensors are written before each replay
    logits: Tensor


class GraphedStage:
    """`capture` is `captured_by_cuda` but in tests."""

    def __init__(self, stage: Stage, context_tokens: int, capture: Capture | None = None) -> None:
        """`context_tokens`: the longest sequence to come; longer ones run without a graph."""
        self._stage = stage
        self._context = context_tokens
        self._capture = capture or captured_by_cuda
        self._captured: dict[int, _Captured] = {}
        self._possible = True

    @property
    def device(self) -> torch.device:
        return self._stage.device

    @property
    def dtype(self) -> torch.dtype:
        return self._stage.dtype

    @property
    def token_bytes(self) -> int:
        return self._stage.token_bytes

    @property
    def pools(self) -> tuple[KvPool, ...]:
        """Of the cache that was taken."""
        return self._stage.pools

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        return self._stage.layer_shapes

    @property
    def vocabulary_size(self) -> int:
        return self._stage.vocabulary_size

    @property
    def hidden_size(self) -> int:
        return self._stage.hidden_size

    @property
    def memory_bytes(self) -> int:
        return self._stage.memory_bytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes captured so far."""
        return tuple(self._captured)

    def most_blocks(self, block_tokens: int) -> int | None:
        return self._stage.most_blocks(block_tokens)

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        self.drop_cache()
        self._stage.take_cache(block_tokens, block_count)

    def drop_cache(self) -> None:
        """Graphs hold addresses of the cache they were captured with, so they go with it."""
        self._captured.clear()
        self._possible = True  # after less was given to the cache
        self._stage.drop_cache()

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        self._stage.copy_blocks(copies)

    def clear_blocks(self, blocks: Iterable[int]) -> None:
        self._stage.clear_blocks(blocks)

    def close(self) -> None:
        self._captured.clear()
        self._stage.close()

    def forward(self, batch: Batch, want: Output) -> Tensor:
        size = next((size for size in SIZES if size >= batch.rows), None)
        if size is None or want != "logits" or batch.vectors is not None or not self._decodes(batch):
            return self._stage.forward(batch, want)
        captured = self._captured.get(size) or self._captured_now(batch, size)
        if captured is None:
            return self._stage.forward(batch, want)
        self._stage.clear_blocks(batch.fresh)
        fill(captured.batch, batch)
        captured.graph.replay()
        return captured.logits[: batch.rows]

    def _decodes(self, batch: Batch) -> bool:
        """One new token and one output a row, and a past that the captured tables have room for."""
        alone = batch.tokens.shape[0] == batch.output_rows.shape[0] == batch.rows
        return alone and batch.tables.shape[1] <= self._table_width(batch)

    def _table_width(self, batch: Batch) -> int:
        return -(-self._context // batch.block_tokens)

    def _captured_now(self, batch: Batch, size: int) -> _Captured | None:
        if not self._possible:
            return None
        static = _static_like(batch, size, self._table_width(batch))
        fill(static, batch)
        try:
            graph, logits = self._capture(lambda: self._stage.forward(static, "logits"))
        except RuntimeError as error:
            # A forward that asks the device for values on the way cannot be captured, and a graph's own memory may be
            # more than the cache has left; what was captured before still runs.
            log.info("no more CUDA graphs: %s", (str(error).strip() or type(error).__name__).splitlines()[0])
            self._possible = False
            return None
        self._captured[size] = captured = _Captured(graph, static, logits)
        return captured


def fill(static: Batch, batch: Batch) -> None:
    """Write `batch` into the captured tensors; surplus rows and table columns repeat what is there."""
    for target, source in _pairs(static, batch):
        target[: batch.rows].copy_(source)
        target[batch.rows :].copy_(source[:1].expand(target.shape[0] - batch.rows))
    width = batch.tables.shape[1]
    static.tables[: batch.rows, :width].copy_(batch.tables)
    static.tables[batch.rows :, :width].copy_(batch.tables[:1].expand(static.tables.shape[0] - batch.rows, -1))


def _pairs(static: Batch, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    return [
        (static.tokens, batch.tokens),
        (static.positions, batch.positions),
        (static.slots[0], batch.slots[0]),
        (static.slots[1], batch.slots[1]),
    ]


def _static_like(batch: Batch, size: int, width: int) -> Batch:
    device = batch.tokens.device

    def numbers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    return replace(
        batch,
        tokens=numbers(size),
        positions=numbers(size),
        slots=(numbers(size), numbers(size)),
        tables=numbers(size, width),
        output_rows=torch.arange(size, device=device),
        starts=tuple(range(size + 1)),
        lengths=(width * batch.block_tokens,) * size,
        fresh=(),
        plans={},
    )


def captured_by_cuda(forward: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
    """Runs `forward` three times on a side stream, as PyTorch asks for, then captures it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward()
    return graph, output
