"""A stage: the layers of a model that one device holds, computing a batch over the cache.

Invariants: a forward writes the keys and values of exactly the batch's slots, and may be repeated; rows do not see each
other. `PlainStage` runs the model's own modules of transformers; `layers/` has quicker ones behind the same protocol.
Must not know scheduling, sampling or tokenizers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.step import Output

__all__ = ["LayerShape", "Stage"]


class Stage(Protocol):
    """Every call comes from one thread, in inference mode."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """In which keys and values are kept."""
        ...

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def memory_bytes(self) -> int:
        """Of the weights."""
        ...

    def bind(self, pool: KvPool) -> None:
        """From now on keys and values go to `pool`, made for `layer_shapes`; an earlier one is let go."""
        ...

    def forward(self, batch: Batch, want: Output) -> Tensor:
        """Rows of `batch.output_rows`: logits [outputs, vocabulary], the last hidden states [outputs, hidden size], or
        for "nothing" an empty tensor, when only the cache is to be filled."""
        ...

    def close(self) -> None:
        """Let go of weights and pool."""
        ...
