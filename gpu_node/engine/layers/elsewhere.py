"""Blocks of a part's cache that lie elsewhere, as the part sees them; and the rows of a batch that need none of them.

Invariant: rows are divided, never changed, so that each half is a batch like any other. Must not know where elsewhere
is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from gpu_node.engine.attention import AttentionTerms
from gpu_node.engine.batch import Batch


class Far(Protocol):
    """Pool and attention of one forward."""

    def write(self, layer: int, slots: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None: ...

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: Any, terms: AttentionTerms) -> Tensor: ...


class Elsewhere(Protocol):
    """A cache whose first blocks are those of the part's pool."""

    def far_rows(self, batch: Batch) -> tuple[int, ...]:
        """Rows of which some block is not in the pool."""
        ...

    def opened(self, batch: Batch) -> Far:
        """For a forward of this batch; clears its fresh blocks."""
        ...

    def clear(self, blocks: Iterable[int]) -> None: ...

    def copy(self, source: int, target: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """Some rows of a batch as a batch of their own."""

    batch: Batch
    tokens: Tensor  # which of the whole batch's tokens
    outputs: Tensor  # which of the whole batch's outputs


def half_of(batch: Batch, rows: Sequence[int]) -> Half:
    """`rows` in order, at least one."""
    starts = numpy.asarray(batch.starts)
    counts = numpy.diff(starts)
    of_row = numpy.repeat(numpy.arange(batch.rows), counts)
    chosen = numpy.isin(of_row, rows)
    tokens = numpy.flatnonzero(chosen)
    new_place = numpy.cumsum(chosen) - 1
    device = batch.tokens.device
    outputs = batch.output_rows.cpu().numpy()
    kept = numpy.flatnonzero(chosen[outputs])
    index = torch.from_numpy(tokens).to(device)
    mine = {int(block) for block in batch.tables[list(rows)].reshape(-1)}
    return Half(
        replace(
            batch,
            tokens=batch.tokens[index],
            positions=batch.positions[index],
            slots=(batch.slots[0][index], batch.slots[1][index]),
            tables=batch.tables[list(rows)],
            output_rows=torch.from_numpy(new_place[outputs[kept]]).to(device),
            starts=(0, *numpy.cumsum(counts[list(rows)]).tolist()),
            lengths=tuple(batch.lengths[row] for row in rows),
            fresh=tuple(block for block in batch.fresh if block in mine),
            vectors=_vectors(batch, chosen, new_place),
            plans={},
        ),
        index,
        torch.from_numpy(kept).to(device),
    )


def _vectors(batch: Batch, chosen: Any, new_place: Any) -> tuple[Tensor, Tensor] | None:
    if batch.vectors is None:
        return None
    places, vectors = batch.vectors
    at = places.cpu().numpy()
    kept = numpy.flatnonzero(chosen[at])
    if not len(kept):
        return None
    device = places.device
    return torch.from_numpy(new_place[at[kept]]).to(device), vectors[torch.from_numpy(kept).to(device)]
