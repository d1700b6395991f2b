"""Memory of fixed address for forwards of few tokens: what compiled programs read and write.

Invariant: tensors are made once and only their contents change, since programs hold their addresses. Must not know
which operations use them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy
import torch
from torch import Tensor

from gpu_node.engine.batch import Batch
from gpu_node.engine.layers.recipe import Recipe
from gpu_node.engine.layers.rotary import Angles


class Workspace:
    """Every tensor's first dimension is `tokens`, or rows, which are no more."""

    def __init__(self, recipe: Recipe, mlp_size: int, turned: dict[str, int], tokens: int, longest_table: int) -> None:
        """`turned`: how many numbers of a head each table of angles turns."""
        self.tokens = tokens
        self.hidden = torch.zeros(tokens, recipe.hidden_size)
        self.prepared = torch.zeros_like(self.hidden)  # normalised: what goes into products
        self.added = torch.zeros_like(self.hidden)  # what comes out of them, where a norm follows
        self.qkv = torch.zeros(tokens, recipe.query_size + 2 * recipe.key_size)
        self.attended = torch.zeros(tokens, recipe.heads, recipe.head_dim)
        self.gate_up = torch.zeros(tokens, 2 * mlp_size)
        self.gated = torch.zeros(tokens, mlp_size)
        self.cosines = {name: torch.zeros(tokens, size) for name, size in turned.items()}
        self.sines = {name: torch.zeros(tokens, size) for name, size in turned.items()}
        self.positions, self.rows, self.blocks, self.places = torch.zeros(4, tokens, dtype=torch.int64).unbind()
        self.tables = torch.zeros(tokens, longest_table, dtype=torch.int64)

    def fits(self, batch: Batch) -> bool:
        return batch.tokens.shape[0] <= self.tokens and batch.tables.shape[1] <= self.tables.shape[1]

    def fill(self, batch: Batch, hidden: Tensor, angles: dict[str, Angles], tables: bool = True) -> None:
        """`tables`: False where nothing here attends over them, so that they may be longer than there is room for."""
        count = hidden.shape[0]
        self.hidden[:count] = hidden
        self.positions[:count] = batch.positions
        self.blocks[:count], self.places[:count] = batch.slots
        self.rows[:count] = _rows(batch, count)
        if tables:
            self.tables[: batch.rows, : batch.tables.shape[1]] = batch.tables
        for name, table in angles.items():
            torch.index_select(table.cosine, 0, batch.positions, out=self.cosines[name][:count])
            torch.index_select(table.sine, 0, batch.positions, out=self.sines[name][:count])

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> Iterable[Tensor]:
        yield from (self.hidden, self.prepared, self.added, self.qkv, self.attended, self.gate_up, self.gated)
        yield from (*self.cosines.values(), *self.sines.values())
        yield from (self.positions, self.rows, self.blocks, self.places, self.tables)


def _rows(batch: Batch, count: int) -> Tensor:
    """Which of the batch's rows each token belongs to."""
    if batch.rows == count:
        return torch.arange(count)
    return torch.from_numpy(numpy.repeat(numpy.arange(batch.rows), numpy.diff(batch.starts)))
