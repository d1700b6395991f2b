"""How many blocks the key-value cache has: from the memory that is really free, or as told.

Pure but for reading what Linux tells. Invariant: what is asked for explicitly is given or refused, never changed; what
is chosen here leaves the larger part of a CPU's memory to others. Must not know torch, nor models beyond the size of a
block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_node.engine.control_groups import group_folders
from gpu_node.errors import DeviceOutOfMemory

# Programs of people run on the same CPU; pages of the cache are taken one by one and never given back.
CPU_SHARE = 0.125
# One conversation of full length should fit even where the share is small, as long as this much stays free.
CPU_LIMIT = 0.5
# For a step's activations and logits, and what libraries of the device take at their first call.
CUDA_RESERVE_SHARE = 0.08
CUDA_RESERVE_BYTES = 512 << 20
UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number about this large


@dataclass(frozen=True, slots=True)
class CacheOptions:
    block_tokens: int = 16
    block_count: int | None = None  # exactly so many
    size_bytes: int | None = None  # or as many as fit
    max_running: int = 32  # sequences at once, and
    context: int = 8192  # the longest of them: more than both fill is not taken


def block_count(
    options: CacheOptions, block_bytes: int, room_bytes: int, limit_bytes: int, most: int | None = None
) -> int:
    """`room_bytes`: what the cache may take; `limit_bytes`: what it may take for the sake of one whole context; `most`:
    so many blocks stay within budgets, which then are what the cache may take.

    Raises `DeviceOutOfMemory` when there is no room for a single block."""
    if options.block_count is not None:
        return options.block_count
    whole = -(-options.context // options.block_tokens)
    if options.size_bytes is not None:
        count = options.size_bytes // block_bytes
    elif most is not None:
        count = min(most, limit_bytes // block_bytes, options.max_running * whole)
    else:
        count = max(room_bytes // block_bytes, min(limit_bytes // block_bytes, whole))
        count = min(count, options.max_running * whole)
    if count < 1:
        raise DeviceOutOfMemory(f"there is no room for the cache: one block of it takes {block_bytes} bytes")
    return count


def cpu_room() -> tuple[int, int]:
    """`room_bytes` and `limit_bytes` where weights and cache share the machine's memory with others."""
    available = available_bytes()
    return int(available * CPU_SHARE), int(available * CPU_LIMIT)


def cuda_room(free_bytes: int, total_bytes: int) -> tuple[int, int]:
    """`room_bytes` and `limit_bytes` of a GPU, the weights already in their place."""
    left = max(free_bytes - max(int(total_bytes * CUDA_RESERVE_SHARE), CUDA_RESERVE_BYTES), 0)
    return left, left


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be taken without swapping, within the limits of the control groups that we are in."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = 2 << 30  # no Linux: enough for small models
    return max(min([available, *_group_limits(root)]), 0)


def _group_limits(root: Path) -> Iterator[int]:
    """What each control group, and each that it lies in, still allows."""
    for folder in group_folders(root, "memory"):
        for limit_name, usage_name in (("memory.max", "memory.current"), _FIRST_VERSION):
            try:
                limit = int((folder / limit_name).read_text())
                used = int((folder / usage_name).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if limit < UNLIMITED_BYTES:
                yield limit - used + _reclaimable(folder)


_FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _reclaimable(folder: Path) -> int:
    """Pages of files count as used, but go when somebody needs the room."""
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
