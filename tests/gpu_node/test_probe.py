"""What is asked of torch, with played ones: what works is told, and what fails leaves out itself only."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_node.device_profiles import FoundDevice, LeftOut, read_line
from gpu_node.probe import Probe, main, vendor_of


class PlayedTorch:
    """Its CPU works, and it has these cards; nothing is computed."""

    float32, float16 = "float32", "float16"

    def __init__(self, cards: int = 0, place: str = "cuda", hip: str | None = None, mps: bool = False) -> None:
        self.version = SimpleNamespace(hip=hip)
        self.asked: list[tuple[str, Any]] = []
        self.threads = 2
        self.broken: set[str] = set()
        self.backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps))
        modules = {name: self._module(0) for name in ("cuda", "xpu")}
        modules[place] = self._module(cards)
        self.cuda, self.xpu = modules["cuda"], modules["xpu"]
        self.mps = SimpleNamespace(
            recommended_max_memory=lambda: 1000, driver_allocated_memory=lambda: 300, synchronize=lambda: None
        )

    def _module(self, cards: int) -> SimpleNamespace:
        def about(number: int) -> SimpleNamespace:
            if f"card {number}" in self.broken:
                raise RuntimeError("CUDA error: the device is gone\nmore words")
            return SimpleNamespace(name=f"card {number}", total_memory=8 << 30, uuid=f"U{number}", driver_version="1.2")

        return SimpleNamespace(
            is_available=lambda: cards > 0, device_count=lambda: cards, get_device_properties=about,
            mem_get_info=lambda number: (6 << 30, 8 << 30), synchronize=lambda: None, memory_reserved=lambda number: 0,
        )  # fmt: skip

    def set_num_threads(self, threads: int) -> None:
        self.threads = threads

    def get_num_threads(self) -> int:
        return self.threads

    def inference_mode(self) -> Any:
        return nullcontext()

    def ones(self, shape: tuple[int, ...], dtype: str, device: str) -> Any:
        if f"memory of {device}" in self.broken:
            raise RuntimeError("out of memory")
        self.asked.append((device, shape))
        return SimpleNamespace(add=lambda other: None)

    def mv(self, matrix: Any, row: Any) -> None: ...

    def mm(self, one: Any, other: Any) -> None: ...


def told(torch: PlayedTorch, skip: frozenset[str] = frozenset(), threads: int = 0) -> tuple[list[Any], list[str]]:
    """Devices and what was left out, and what was asked for in order. Every look at the clock is 10 ms later."""
    lines: list[str] = []
    ticks = itertools.count()
    Probe(torch, lines.append, skip, lambda: next(ticks) * 0.01).run(threads)
    found = [one for one in map(read_line, lines) if one is not None]
    return found, [json.loads(line)["asking"] for line in lines if "asking" in json.loads(line)]


def test_a_cpu_alone_with_the_threads_that_it_was_measured_with() -> None:
    (cpu,), asked = told(PlayedTorch(), threads=1)
    assert (cpu.kind, cpu.threads, asked) == ("cpu", 1, ["cpu", "cuda", "xpu", "mps"])
    assert 0 < cpu.free_bytes <= cpu.total_bytes
    assert cpu.bytes_per_second == pytest.approx((64 << 20) / 0.01), "of the quickest reading"
    assert cpu.call_seconds == pytest.approx(0.01 / 200)


def test_cards_of_each_vendor() -> None:
    found, asked = told(PlayedTorch(2))
    assert [(one.card, one.vendor, one.free_bytes) for one in found[1:]] == [
        ("cuda:0", "NVIDIA", 6 << 30), ("cuda:1", "NVIDIA", 6 << 30)
    ]  # fmt: skip
    assert asked == ["cpu", "cuda", "cuda:0", "cuda:1", "xpu", "mps"]
    assert (found[1].name, found[1].uuid) == ("card 0", "U0") and found[1].profile is not None
    amd = told(PlayedTorch(1, hip="6.2"))[0][1]
    assert (amd.card, amd.vendor, amd.driver) == ("rocm:0", "AMD", "HIP 6.2")
    intel = told(PlayedTorch(1, place="xpu"))[0][1]
    assert (intel.card, intel.vendor, intel.driver) == ("xpu:0", "Intel", "1.2")
    apple = told(PlayedTorch(mps=True))[0][1]
    assert (apple.card, apple.total_bytes, apple.free_bytes) == ("mps:0", 1000, 700)


def test_a_card_that_fails_is_left_out_with_one_line_and_the_others_stay() -> None:
    torch = PlayedTorch(3)
    torch.broken.add("card 1")
    found, _ = told(torch)
    assert [one.card for one in found if isinstance(one, FoundDevice)] == ["cpu", "cuda:0", "cuda:2"]
    assert [one for one in found if isinstance(one, LeftOut)] == [
        LeftOut("cuda:1", "RuntimeError: CUDA error: the device is gone")
    ]


def test_a_card_that_does_not_let_itself_be_measured_is_there_without_a_profile() -> None:
    torch = PlayedTorch(1)
    torch.broken.add("memory of cuda:0")
    found, _ = told(torch)
    assert LeftOut("cuda:0: measuring", "RuntimeError: out of memory") in found
    assert [(one.card, one.profile is None) for one in found if isinstance(one, FoundDevice)] == [
        ("cpu", False), ("cuda:0", True)
    ]  # fmt: skip


def test_a_build_without_a_word_of_free_memory_has_all_that_is_not_reserved() -> None:
    torch = PlayedTorch(1, place="xpu")
    del torch.xpu.mem_get_info
    assert told(torch)[0][1].free_bytes == 8 << 30


def test_what_hung_before_is_left_alone() -> None:
    torch = PlayedTorch(2)
    assert told(torch, frozenset({"cuda:0", "xpu"}))[1] == ["cpu", "cuda", "cuda:1", "mps"]
    assert not any(place == "cuda:0" for place, _ in torch.asked)
    assert told(torch, frozenset({"cuda"}))[1] == ["cpu", "xpu", "mps"]


def test_what_is_measured_fits_into_what_is_free() -> None:
    torch = PlayedTorch(1)
    torch.cuda.mem_get_info = lambda number: (16 << 20, 8 << 30)
    told(torch)
    rows, width = next(shape for place, shape in torch.asked if place == "cuda:0")
    assert rows * width * 2 <= 2 << 20


def test_vendors_of_processors() -> None:
    assert [vendor_of(name) for name in ("AMD EPYC 9B14", "Intel(R) Xeon", "Apple M3", "riscv")] == [
        "AMD", "Intel", "Apple", ""
    ]  # fmt: skip


def test_the_real_one_has_this_cpu(capfd: Any) -> None:
    """In this process, since torch is imported in it anyway; `main` in a child is `test_probing`'s."""
    import torch

    lines: list[str] = []
    Probe(torch, lines.append, frozenset({"cuda", "xpu", "mps"})).run(0)
    (cpu,) = [one for one in map(read_line, lines) if isinstance(one, FoundDevice)]
    assert 1e8 < (cpu.bytes_per_second or 0) < 1e13 and 1e8 < (cpu.operations_per_second or 0) < 1e15
    assert cpu.threads == torch.get_num_threads()
    assert callable(main)
