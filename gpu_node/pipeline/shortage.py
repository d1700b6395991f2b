"""What says that memory ran out, and how memory that was let go goes back to the system."""

from __future__ import annotations

import ctypes

import torch

from gpu_node.engine.runner import NO_MEMORY_TEXTS
from gpu_node.errors import DeviceOutOfMemory


def is_shortage(error: BaseException) -> bool:
    """torch has an exception of its own for GPUs, and plain ones with words in them for CPUs."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | DeviceOutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY_TEXTS)


def give_back(device: torch.device) -> None:
    """What nobody holds any more. Weights and caches lie in no circles, so that nothing has to be looked for: that
    would take a third of a second, in which nobody else runs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # no glibc, which alone keeps what is freed
        return
    trim(0)
