"""The tensors of one step: all rows' new tokens behind one another, and where their past lies.

Invariants: row i's tokens are `[starts[i], starts[i + 1])`; `lengths[i]` counts its past and its new tokens; a block
table is filled up with the row's own last block, so that reading past its end reads nothing of another sequence.
Everything crosses to the device in one copy. Must not know models, nor what a sequence is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from gpu_node.engine.step import Row


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: Tensor  # [tokens], int64, as are all tensors here
    positions: Tensor  # [tokens]
    slots: tuple[Tensor, Tensor]  # [tokens] each: the block, and the place in it, that a token's key and value go to
    tables: Tensor  # [rows, longest]: block numbers of each row
    output_rows: Tensor  # [outputs]: which tokens the result is wanted of, in row order
    starts: tuple[int, ...]  # rows + 1
    lengths: tuple[int, ...]  # slots of each row that hold something after this step
    fresh: tuple[int, ...]  # blocks whose first slot this step writes and whose last it does not
    block_tokens: int
    # Where in `tokens` embeddings are given, [given], and which, [given, hidden size] in single precision.
    vectors: tuple[Tensor, Tensor] | None = None
    # What attention works out once a step and needs in every layer.
    plans: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def on(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            slots=(self.slots[0].to(device), self.slots[1].to(device)),
            tables=self.tables.to(device),
            output_rows=self.output_rows.to(device),
            vectors=None if self.vectors is None else (self.vectors[0].to(device), self.vectors[1].to(device)),
            plans={},
        )

    def with_given(self, embedded: Tensor, factor: float = 1.0) -> Tensor:
        """`embedded` [tokens, hidden size], overwritten where embeddings are given by these times the factor."""
        if self.vectors is not None:
            places, vectors = self.vectors
            embedded[places] = vectors.mul(factor).to(embedded.dtype)
        return embedded

    def new_tokens(self, row: int) -> int:
        return self.starts[row + 1] - self.starts[row]


def batch_of(rows: Sequence[Row], block_tokens: int, device: torch.device | str = "cpu") -> Batch:
    """Rows without tokens, and tables too short for their row, are mistakes of the caller."""
    counts = [len(row.tokens) for row in rows]
    lengths = [row.start + count for row, count in zip(rows, counts, strict=True)]
    tables = _tables(rows, lengths, block_tokens)
    starts = numpy.concatenate(([0], numpy.cumsum(counts)))
    of_row = numpy.repeat(numpy.arange(len(rows)), counts)
    first = numpy.array([row.start for row in rows], dtype=numpy.int64)
    positions = numpy.arange(starts[-1]) - starts[of_row] + first[of_row]
    parts = [
        numpy.concatenate([numpy.asarray(row.tokens, dtype=numpy.int64) for row in rows]),
        positions,
        tables[of_row, positions // block_tokens],
        positions % block_tokens,
        tables.reshape(-1),
        _outputs(rows, starts),
    ]
    tokens, at, blocks, places, table, outputs = _moved(parts, torch.device(device))
    return Batch(
        tokens=tokens,
        positions=at,
        slots=(blocks, places),
        tables=table.view(tables.shape),
        output_rows=outputs,
        starts=tuple(starts.tolist()),
        lengths=tuple(lengths),
        fresh=_fresh(rows, lengths, block_tokens),
        block_tokens=block_tokens,
        vectors=_vectors(rows, starts, torch.device(device)),
    )


def _vectors(rows: Sequence[Row], starts: Any, device: torch.device) -> tuple[Tensor, Tensor] | None:
    given = [index for index, row in enumerate(rows) if row.vectors is not None]
    if not given:
        return None
    places = numpy.concatenate([numpy.arange(starts[index], starts[index + 1]) for index in given])
    vectors = numpy.concatenate([rows[index].vectors for index in given])
    assert vectors.dtype == numpy.float32 and len(vectors) == len(places), "one embedding a token"
    return torch.from_numpy(places).to(device), torch.from_numpy(vectors).to(device)


def _tables(rows: Sequence[Row], lengths: Sequence[int], block_tokens: int) -> Any:
    needed = [-(-length // block_tokens) for length in lengths]
    tables = numpy.empty((len(rows), max(needed)), dtype=numpy.int64)
    for index, (row, count) in enumerate(zip(rows, needed, strict=True)):
        assert row.tokens and len(row.blocks) >= count, "a row has tokens and blocks for them"
        tables[index, :count] = row.blocks[:count]
        tables[index, count:] = row.blocks[count - 1]
    return tables


def _outputs(rows: Sequence[Row], starts: Any) -> Any:
    ends = starts[1:]
    wanted = [numpy.arange(end - row.output_tokens, end) for row, end in zip(rows, ends, strict=True)]
    return numpy.concatenate(wanted)


def _fresh(rows: Sequence[Row], lengths: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    found = []
    for row, length in zip(rows, lengths, strict=True):
        begin = length - length % block_tokens  # of the block that this row leaves partly filled, if it does
        if row.start <= begin < length:
            found.append(int(row.blocks[begin // block_tokens]))
    return tuple(found)


def _moved(parts: Sequence[Any], device: torch.device) -> Sequence[Tensor]:
    together = torch.from_numpy(numpy.concatenate(parts))
    if device.type == "cuda":
        together = together.pin_memory().to(device, non_blocking=True)
    pieces: Sequence[Tensor] = torch.split(together, [len(part) for part in parts])
    return pieces
