"""Where a worker lives: its head, its device, and what the system says of both. Linux tells the most; others less."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_node.engine.cache_size import available_bytes
from gpu_node.pipeline.orders import AnyPlace


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker is started with."""

    control: AnyPlace  # the head's control gate
    number: int
    token: str = field(repr=False)
    name: str = "cpu"  # of its device, for people

    def own_gate(self) -> AnyPlace:
        """Beside the head's: in the same folder, or on the same address."""
        if isinstance(self.control, tuple):
            return self.control[0], 0
        return str(Path(self.control).parent / f"{self.number}-{secrets.token_hex(4)}")


def device_bytes(name: str = "cpu", library: Any = torch) -> tuple[int, int]:
    """Total and free, of the card that this process sees, or of main memory. `name`: the device's, which says its kind.

    A worker of a CPU must not ask a card that happens to be there: that takes a part of its memory for nothing."""
    card = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu"}.get(name.partition(":")[0])
    if card is not None and getattr(library, card).is_available():
        free, total = getattr(library, card).mem_get_info()
        return total, free
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        total = 0
    free = available_bytes()
    return max(total, free), free


def resident_bytes() -> int:
    """Of this process; 0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def process_seconds() -> float:
    """How long this process has been running; 0 where nobody tells."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
