"""Which rows of a step go through one forward together, and where each of them lies in what comes of it.

Whoever runs a step (in this process, or over links) divides it like this and puts the outputs together again. Must not
know how anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_node.engine.step import Output, Row


@dataclass(frozen=True, slots=True)
class StepShare:
    """Rows of a step that go through one forward together."""

    want: Output
    indices: tuple[int, ...]

    @staticmethod
    def of(rows: Sequence[Row]) -> Sequence[StepShare]:
        """Hidden states and logits come from different ends of a model; rows without output go with the latter."""
        hidden = tuple(at for at, row in enumerate(rows) if row.output == "hidden")
        others = tuple(at for at, row in enumerate(rows) if row.output != "hidden")
        want: Output = "logits" if any(rows[at].output == "logits" for at in others) else "nothing"
        return [share for share in (StepShare(want, others), StepShare("hidden", hidden)) if share.indices]

    def places(self, rows: Sequence[Row]) -> dict[int, int]:
        """Row index to the first of its rows in the output."""
        places, at = {}, 0
        for index in self.indices:
            places[index] = at
            at += rows[index].output_tokens
        return places


def unpicked(
    found: Tensor, rows: Sequence[Row], places: Mapping[int, int], picked: set[int]
) -> Iterator[tuple[int, Any]]:
    """The outputs that nobody picks from, as numbers of their own."""
    for index, at in places.items():
        count = rows[index].output_tokens
        if count and index not in picked:
            yield index, found[at : at + count].to(device="cpu", dtype=torch.float32).numpy().copy()
