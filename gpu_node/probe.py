"""`python -m gpu_node.probe`: asks torch for this machine's devices and measures each briefly; a JSON line for each.

A process of its own, since importing torch takes seconds and a broken driver may hang it for ever: before a device is
asked a line says which, so that whoever waits knows what hung. Invariants: no device is measured for longer than
`MEASURE_SECONDS` and a few calls; what fails leaves out its device and no other. Torch comes in as an argument.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gpu_node.device_profiles import FoundDevice, LeftOut, line_of
from gpu_node.devices import Kind
from gpu_node.inventory import gpus, machine

MEASURE_SECONDS = 0.4  # of each of the two measurements
# Beyond every cache that a device has, and little beside its memory. On a CPU in single precision, as it computes.
MATRIX_BYTES = {"cpu": 64 << 20}
GPU_MATRIX_BYTES = 256 << 20
# A square product that is large enough to fill a device's units; a CPU does some dozens of it in the time.
PRODUCT_SIZE = {"cpu": 384}
GPU_PRODUCT_SIZE = 4096
CALLS = 200  # of a tiny operation, to see its fixed part
# Whatever torch and drivers raise for a device that does not work, or where a build lacks what we ask for.
FAILURES = (RuntimeError, AttributeError, AssertionError, OSError, ValueError, TypeError, ImportError)

Tell = Callable[[str], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where torch keeps what it knows of a kind of device."""

    kind: Kind
    place: str  # as torch calls devices of it
    vendor: str


class Probe:
    def __init__(self, torch: Any, tell: Tell, skip: frozenset[str] = frozenset(), clock: Clock = time.perf_counter):
        """`skip`: devices and kinds that hung before."""
        self._torch, self._tell, self._skip, self._clock = torch, tell, skip, clock

    def run(self, threads: int) -> None:
        """`threads`: that the CPU is measured with; 0: as torch decides."""
        with self._asking("cpu") as wanted:
            if wanted:
                self._report(self._cpu(threads), "cpu")
        for backend in self._backends():
            with self._asking(backend.kind) as wanted:
                if wanted:
                    self._report_all(backend)

    def _backends(self) -> Iterator[Backend]:
        hip = getattr(getattr(self._torch, "version", None), "hip", None)
        yield Backend("rocm", "cuda", "AMD") if hip else Backend("cuda", "cuda", "NVIDIA")
        yield Backend("xpu", "xpu", "Intel")
        yield Backend("mps", "mps", "Apple")

    def _report_all(self, backend: Backend) -> None:
        module = getattr(self._torch, backend.place, None)
        if module is None or not self._is_available(backend):
            return
        count = 1 if backend.kind == "mps" else int(module.device_count())
        for number in range(count):
            card = backend.kind if backend.kind == "mps" else f"{backend.kind}:{number}"
            with self._asking(card) as wanted:
                if wanted:
                    self._report(self._card(backend, module, number), f"{backend.place}:{number}")

    def _is_available(self, backend: Backend) -> bool:
        if backend.kind == "mps":
            return bool(self._torch.backends.mps.is_available())
        return bool(getattr(self._torch, backend.place).is_available())

    def _report(self, found: FoundDevice, place: str) -> None:
        """Measured where that works; a device that only does not let itself be measured is still one."""
        try:
            found = self._measured(found, place)
        except FAILURES as error:
            self._tell(line_of(LeftOut(f"{found.card}: measuring", reason_of(error))))
        self._tell(line_of(found))

    @contextmanager
    def _asking(self, what: str) -> Iterator[bool]:
        if what in self._skip:
            yield False
            return
        self._tell(json.dumps({"asking": what}))
        try:
            yield True
        except FAILURES as error:
            self._tell(line_of(LeftOut(what, reason_of(error))))

    def _cpu(self, threads: int) -> FoundDevice:
        here = machine()
        if threads:
            self._torch.set_num_threads(threads)
        used = int(self._torch.get_num_threads())
        name, vendor = here.processor, vendor_of(here.processor)
        return FoundDevice("cpu", 0, name, vendor, "", "", here.total_bytes, here.available_bytes, threads=used)

    def _card(self, backend: Backend, module: Any, number: int) -> FoundDevice:
        if backend.kind == "mps":
            total = int(module.recommended_max_memory())
            return FoundDevice(
                "mps", 0, "Apple GPU", "Apple", "", "", total, max(total - int(module.driver_allocated_memory()), 0)
            )
        about = module.get_device_properties(number)
        free, total = _memory_of(module, number, int(about.total_memory))
        return FoundDevice(
            backend.kind, number, str(about.name), backend.vendor, self._driver(backend, about),
            str(getattr(about, "uuid", "")), total, free,
        )  # fmt: skip

    def _driver(self, backend: Backend, about: Any) -> str:
        match backend.kind:
            case "cuda":
                return next((gpu.driver for gpu in gpus()), "")
            case "rocm":
                return f"HIP {self._torch.version.hip}"
            case _:
                return str(getattr(about, "driver_version", ""))

    def _measured(self, found: FoundDevice, place: str) -> FoundDevice:
        on_cpu = found.kind == "cpu"
        size = MATRIX_BYTES["cpu"] if on_cpu else min(GPU_MATRIX_BYTES, found.free_bytes // 8)
        side = PRODUCT_SIZE["cpu"] if on_cpu else GPU_PRODUCT_SIZE
        dtype = self._torch.float32 if on_cpu else self._torch.float16
        width = 2048
        rows = max(size // (width * (4 if on_cpu else 2)), 1)
        with self._torch.inference_mode():
            matrix = self._torch.ones((rows, width), dtype=dtype, device=place)
            row = self._torch.ones((width,), dtype=dtype, device=place)
            read = self._seconds(lambda: self._torch.mv(matrix, row), place)
            call = self._seconds(lambda: row.add(1), place, CALLS)
            square = self._torch.ones((side, side), dtype=dtype, device=place)
            product = self._seconds(lambda: self._torch.mm(square, square), place)
        moved = rows * width * (4 if on_cpu else 2)
        return replace(
            found, bytes_per_second=moved / read, operations_per_second=2 * side**3 / product, call_seconds=call
        )

    def _seconds(self, call: Callable[[], object], place: str, calls: int = 1) -> float:
        """Of one call: the quickest of those that fit into the time, since what disturbs only makes it slower."""
        call()  # the first one allocates and chooses
        self._wait(place)
        begun, best = self._clock(), float("inf")
        while True:
            started = self._clock()
            for _ in range(calls):
                call()
            self._wait(place)
            ended = self._clock()
            best = min(best, (ended - started) / calls)
            if ended - begun >= MEASURE_SECONDS / 3:
                return max(best, 1e-9)

    def _wait(self, place: str) -> None:
        kind = place.partition(":")[0]
        if kind != "cpu":
            getattr(self._torch, kind).synchronize()


def _memory_of(module: Any, number: int, total: int) -> tuple[int, int]:
    """Free and total bytes; some builds tell what is free of no device."""
    try:
        free, all_of_it = module.mem_get_info(number)
    except FAILURES:
        return total - int(module.memory_reserved(number)), total
    return int(free), int(all_of_it)


def vendor_of(processor: str) -> str:
    known = ("Intel", "AMD", "Apple", "ARM", "Qualcomm")
    return next((name for name in known if name.lower() in processor.lower()), "")


def reason_of(error: BaseException) -> str:
    """One line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def main(arguments: list[str]) -> int:
    made = argparse.ArgumentParser(prog="python -m gpu_node.probe", description="List this machine's devices as JSON.")
    made.add_argument("--threads", type=int, default=0, help="that the CPU is measured with; 0 leaves it to torch")
    made.add_argument("--skip", default="", help="devices and kinds to leave alone, as cuda:1,xpu")
    given = made.parse_args(arguments)
    # Only our lines may stand on stdout: what libraries print goes to stderr.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: str) -> None:
        print(line, file=told, flush=True)

    tell(json.dumps({"asking": "torch"}))
    try:
        torch = importlib.import_module("torch")
    except FAILURES as error:
        tell(line_of(LeftOut("torch", reason_of(error))))
        return 1
    Probe(torch, tell, frozenset(filter(None, given.skip.split(",")))).run(given.threads)
    tell(json.dumps({"done": True}))
    told.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
