"""What is here and how much of it is free: this machine's memory and processor, and its NVIDIA GPUs. The quick look.

GPUs are asked through the driver's own library (NVML), so that neither torch nor a further package is needed; a machine
without it has none. Everything is looked at when asked and nothing is kept; what takes longer to find out (GPUs of
others, and how quick a device is) is asked by `probing`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

NVML_LIBRARY = "libnvidia-ml.so.1"
NAME_BYTES = 96
MEMORY_FILE = Path("/proc/meminfo")
CONTAINER_LIMITS = Path("/sys/fs/cgroup")

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    driver: str = ""
    vendor: str = "NVIDIA"


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    processor: str
    cores: int
    usable_cores: int
    total_bytes: int
    available_bytes: int
    load_average: tuple[float, float, float]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilisation(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def gpus(visible: str | None = None, library: str = NVML_LIBRARY) -> tuple[Gpu, ...]:
    """`visible` is the value of CUDA_VISIBLE_DEVICES: only those, in that order, are ours to use."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        return chosen(_all(nvml), visible)
    finally:
        nvml.nvmlShutdown()


def chosen(found: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """As CUDA reads the list: it ends at the first entry that names nothing."""
    if visible is None:
        return tuple(found)
    kept: list[Gpu] = []
    for entry in visible.split(","):
        word = entry.strip()
        match = [gpu for gpu in found if word and (str(gpu.index) == word or gpu.uuid.startswith(word))]
        if len(match) != 1 or match[0] in kept:
            break
        kept.append(match[0])
    return tuple(kept)


def machine() -> Machine:
    total, available = _memory()
    return Machine(
        name=platform.node(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        total_bytes=total,
        available_bytes=available,
        load_average=os.getloadavg(),
    )


def free_by_card(visible: str | None = None, library: str = NVML_LIBRARY) -> dict[str, int]:
    """Free bytes of main memory and of each GPU that is ours, numbered as CUDA numbers them: cheap, for each look."""
    cards = {f"cuda:{number}": gpu.free_bytes for number, gpu in enumerate(gpus(visible, library))}
    return {"cpu": machine().available_bytes} | cards


def within(seconds: float, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """What `ask` says, or `otherwise` when it has not said it by then: a broken driver may never answer."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(ask()), name="ask a driver", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return otherwise


def _all(nvml: ctypes.CDLL) -> list[Gpu]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    told = ctypes.create_string_buffer(NAME_BYTES)
    driver = told.value.decode(errors="replace") if nvml.nvmlSystemGetDriverVersion(told, NAME_BYTES) == 0 else ""
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            found.append(replace(_described(nvml, index, handle), driver=driver))
    return found


def _described(nvml: ctypes.CDLL, index: int, handle: ctypes.c_void_p) -> Gpu:
    memory, busy, heat = _Memory(), _Utilisation(), ctypes.c_uint()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    told_busy = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(busy)) == 0
    told_heat = nvml.nvmlDeviceGetTemperature(handle, 0, ctypes.byref(heat)) == 0
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID, handle),
        name=_text(nvml.nvmlDeviceGetName, handle),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        utilisation_percent=int(busy.gpu) if told_busy else None,
        temperature_celsius=int(heat.value) if told_heat else None,
    )


def _text(function: ctypes._NamedFuncPointer, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(NAME_BYTES)
    return buffer.value.decode(errors="replace") if function(handle, buffer, NAME_BYTES) == 0 else ""


def _memory(told: Path = MEMORY_FILE, limits: Path = CONTAINER_LIMITS) -> tuple[int, int]:
    """Total and available bytes, within what this container may use; untold, half of all is taken for available."""
    try:
        lines = dict(line.split(":", 1) for line in told.read_text().splitlines() if ":" in line)
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = total // 2
    try:
        limit = int((limits / "memory.max").read_text())
        used = int((limits / "memory.current").read_text()) - _reclaimable(limits / "memory.stat")
    except (OSError, ValueError):  # no container, or one without a limit
        return total, available
    return min(total, limit), min(available, max(limit - used, 0))


def _reclaimable(told: Path) -> int:
    """Pages of files count as used, but go when somebody needs the room."""
    try:
        lines = [line.split() for line in told.read_text().splitlines()]
        return next(int(line[1]) for line in lines if line[:1] == ["inactive_file"])
    except (OSError, StopIteration):
        return 0


def _processor(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
