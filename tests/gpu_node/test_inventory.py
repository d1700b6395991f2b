"""This machine as it is, and which of its GPUs are ours."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gpu_node.inventory import Gpu, _memory, _processor, chosen, free_by_card, gpus, machine, within

FOUND = [Gpu(at, f"GPU-{at}aaaa", "a GPU", 100, 50) for at in range(3)]


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]), ("", []), ("2,0", [2, 0]), ("0,7,1", [0]), ("GPU-1", [1]), ("-1", []), ("1,1", [1]),
        (" 1 , 2", [1, 2]), ("GPU-", []),
    ],
)  # fmt: skip
def test_the_visible_ones_as_cuda_reads_the_list(visible: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in chosen(FOUND, visible)] == indices


def test_a_machine_without_the_driver_has_no_gpu() -> None:
    assert gpus(library="libno-such-library.so.1") == ()


def test_this_machine() -> None:
    here = machine()
    assert 0 < here.available_bytes <= here.total_bytes
    assert 1 <= here.usable_cores <= here.cores == (os.cpu_count() or 1)
    assert here.processor and len(here.load_average) == 3


def test_memory_as_the_kernel_tells_it(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n")
    limits = tmp_path / "cgroup"
    assert _memory(told, limits) == (1000 * 1024, 400 * 1024)
    limits.mkdir()
    (limits / "memory.max").write_text("max\n")
    (limits / "memory.current").write_text("5\n")
    assert _memory(told, limits) == (1000 * 1024, 400 * 1024)
    (limits / "memory.max").write_text(f"{300 * 1024}\n")
    (limits / "memory.current").write_text(f"{100 * 1024}\n")
    assert _memory(told, limits) == (300 * 1024, 200 * 1024), "a container has only what it may use"
    (limits / "memory.stat").write_text(f"anon 7\ninactive_file {50 * 1024}\n")
    assert _memory(told, limits) == (300 * 1024, 250 * 1024), "pages of files can go"
    total, available = _memory(tmp_path / "nothing", tmp_path / "nothing")
    assert available == total // 2 > 0


def test_a_processor_without_a_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Something 9000\n")
    assert _processor(info) == "Something 9000"
    assert _processor(tmp_path / "nothing")


def test_what_is_free_by_card() -> None:
    assert list(free_by_card(library="libno-such-library.so.1")) == ["cpu"]
    assert free_by_card("", library="libno-such-library.so.1")["cpu"] > 0


def test_a_driver_that_never_answers_is_not_waited_for() -> None:
    forever = threading.Event()
    try:
        assert within(0.01, lambda: (forever.wait(), "late")[1], "otherwise") == "otherwise"
    finally:
        forever.set()
    assert within(5.0, lambda: "said", "otherwise") == "said"
