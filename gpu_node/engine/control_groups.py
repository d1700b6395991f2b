"""What Linux's control groups allow this process: where they are, and how many processors' time they grant.

Containers limit both memory and time by them, and no other call tells. Pure but for reading files. Must not know torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path


def group_folders(root: Path, controller: str) -> Iterator[Path]:
    """Of each control group that we are in and each that it lies in, where `controller` (of version 1) or all of them
    (version 2) are managed."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        folder = top / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent == top or top in parent.parents))


def granted_processors(root: Path = Path("/")) -> int | None:
    """So many processors' time may be used, rounded up; None: no group sets a limit. More threads than that stand
    still for most of the time, and the others wait for them."""
    shares = [share for folder in group_folders(root, "cpu") if (share := _share(folder)) is not None]
    return max(math.ceil(min(shares)), 1) if shares else None


def _share(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:  # version 1 says "no limit" with -1
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
