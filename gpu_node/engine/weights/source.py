"""What every source of weights offers, and the bounded buffer through which their bytes come.

Invariants: names are those of the model's parameters; a read fills its target whole or raises `ModelError`; beside the
target it holds no more memory than one staging buffer and what a piece of it decodes to. Must not know which model the
weights are for.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight
from gpu_node.errors import ModelError

# Large enough that a read costs more than its call, small enough to stay in the last-level cache of most CPUs.
STAGING_BYTES = 4 << 20


class WeightSource(Protocol):
    @property
    def config(self) -> Any:
        """The model's configuration, one of transformers'."""
        ...

    @property
    def label(self) -> str:
        """What people call it in an error."""
        ...

    @property
    def stored_dtype(self) -> torch.dtype:
        """The float type in which most of the weights lie, or from which they were quantised."""
        ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """As the file calls it: "F32", "BF16", "Q4_1" ..."""
        ...

    def file_bytes(self, name: str) -> int: ...

    def is_quantised(self, name: str) -> bool:
        """Whether `quantised` gives something."""
        ...

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target`, of any float type and on any device, and of exactly the weight's shape."""
        ...

    def quantised(self, name: str) -> QuantisedWeight | None:
        """The matrix as it is stored, in the CPU's memory; None where its values are not codes with scales."""
        ...

    def close(self) -> None: ...


class WeightFile:
    """One file, read in pieces. Plain reads: page faults on a mapped file cost up to eight times as much."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
        self._staging: Tensor | None = None

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_bytes(self, offset: int, target: Tensor) -> None:
        """Fill `target`, contiguous and on the CPU, from `offset` on."""
        view = memoryview(target.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        while view:
            try:
                count = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise ModelError(f"{self.path} cannot be read: {error.strerror or error}") from error
            if count == 0:
                raise ModelError(f"{self.path} ends in the middle of its weights")
            view, offset = view[count:], offset + count

    def staged(self, offset: int, size: int, device: torch.device) -> Tensor:
        """`size` bytes, at most a staging buffer, on `device`; on the CPU valid until the next call."""
        if self._staging is None or self._staging.numel() < size:
            # Copies from pinned memory need no second copy inside the driver.
            self._staging = torch.empty(max(size, STAGING_BYTES), dtype=torch.uint8, pin_memory=device.type == "cuda")
        piece = self._staging[:size]
        self.read_bytes(offset, piece)
        return piece.to(device)

    def close(self) -> None:
        self._staging = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_target(label: str, name: str, shape: tuple[int, ...], target: Tensor) -> None:
    """Raises `ModelError` where a model wants another shape than its file has."""
    if tuple(target.shape) != shape:
        raise ModelError(f"{label}: {name} has the shape {list(shape)}, and the model wants {list(target.shape)}")
    if not target.is_floating_point():
        raise ModelError(f"{label}: {name} cannot become {target.dtype}")


def rows_a_piece(row_bytes: int) -> int:
    return max(STAGING_BYTES // max(row_bytes, 1), 1)
