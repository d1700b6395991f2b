"""One contiguous buffer for many tensors: a layer's weights move, or are read from disk, as one piece.

Invariant: every tensor begins at a multiple of `ALIGNMENT` bytes and none overlaps another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 64  # of a cache line, and of the widest loads


@dataclass(frozen=True, slots=True)
class Place:
    """What is wanted on the shelf."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def shelved(places: Mapping[str, Place], device: torch.device) -> dict[str, Tensor]:
    """Uninitialised views of one new buffer, in the order given. Raises torch's out-of-memory error."""
    starts, end = {}, 0
    for name, place in places.items():
        starts[name] = end
        end += -(-place.bytes // ALIGNMENT) * ALIGNMENT
    # One more line, since the allocator promises less than ours on some systems.
    buffer = torch.empty(end + ALIGNMENT, dtype=torch.uint8, device=device)
    shift = -buffer.data_ptr() % ALIGNMENT
    return {
        name: buffer[shift + starts[name] :][: place.bytes].view(place.dtype).view(place.shape)
        for name, place in places.items()
    }
