"""Facts about the machine and what else it is doing, read from the kernel. A figure without them means nothing.

Linux only where the kernel is asked (`/proc`); elsewhere those facts are missing, never invented.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """What a process has used so far."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system


def cpu_model(cpuinfo: str) -> str:
    """The processor's name out of `/proc/cpuinfo`."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def machine_facts() -> dict[str, object]:
    """Processor, cores, memory, system and Python, for the head of a result."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        cpuinfo, pages = "", 0
    return {
        "cpu": cpu_model(cpuinfo),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
    }


def load_average() -> float:
    """Processes that ran or waited in the last minute: says whether the machine was ours alone."""
    return round(os.getloadavg()[0], 2)


def rss_mib(pid: int) -> float:
    """Memory that the process holds right now; 0 when it is gone."""
    return _status_mib(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """The most memory that the process ever held."""
    return _status_mib(pid, "VmHWM")


def tree_rss_mib(pid: int) -> float:
    """Memory of a process and all of its descendants (servers with worker processes)."""
    return sum(rss_mib(each) for each in tree_of(pid))


def tree_of(pid: int) -> list[int]:
    """The process and all that it started."""
    return [pid, *(each for child in children_of(pid) for each in tree_of(child))]


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def cpu_seconds(pid: int) -> CpuSeconds:
    """User and system time of one process, in steps of a hundredth of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return CpuSeconds(0.0, 0.0)
    return CpuSeconds(int(fields[11]) / _TICKS_PER_SECOND, int(fields[12]) / _TICKS_PER_SECOND)


def _status_mib(pid: int, name: str) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0
