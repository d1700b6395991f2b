"""Hidden states between links and a device: rows in memory become tensors, tensors become rows.

Invariants: on a CPU nothing is copied on the way in, and on the way out only what is not single precision already; with
CUDA both ways go through pinned memory, and what goes out is there when it is handed on. Must not know steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpu_node.pipeline.step_frames import Room, Rows


class Crossing:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self.room = Room(_pinned_memory) if self._pinned else Room()
        self._outgoing = Room(_pinned_memory)

    def inward(self, rows: Rows) -> Tensor:
        """[rows, width] of the room's numbers, used up by whoever computes with them; valid as long as they are."""
        found = torch.frombuffer(rows.data, dtype=torch.float32).view(rows.shape)
        return found.to(self._device, non_blocking=True) if self._pinned else found.to(self._device)

    def outward(self, found: Tensor) -> Rows:
        """Valid until the next one. Waits for the device."""
        rows, width = found.shape
        if self._pinned:
            size = found.numel() * 4
            target = torch.frombuffer(self._outgoing.of(size), dtype=torch.float32, count=max(found.numel(), 1))
            target[: found.numel()].view(found.shape).copy_(found, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
            return Rows(rows, width, self._outgoing.of(size)[:size])
        plain: Any = found.to(device="cpu", dtype=torch.float32).contiguous().numpy()
        return Rows(rows, width, memoryview(plain))


def _pinned_memory(size: int) -> memoryview:
    plain: Any = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memoryview(plain)
