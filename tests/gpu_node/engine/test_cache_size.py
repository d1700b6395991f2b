"""How many blocks there are, and what memory is really free."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.engine.cache_size import CacheOptions, available_bytes, block_count, cpu_room, cuda_room
from gpu_node.errors import DeviceOutOfMemory

GIB = 1 << 30
BLOCK = 1 << 20


def test_what_is_asked_for_is_given() -> None:
    assert block_count(CacheOptions(block_count=7), BLOCK, 0, 0) == 7
    assert block_count(CacheOptions(size_bytes=10 * BLOCK + 5), BLOCK, 0, 0) == 10
    assert block_count(CacheOptions(size_bytes=10 * BLOCK, context=16, max_running=1), BLOCK, 0, 0) == 10


def test_otherwise_room_decides_up_to_what_can_be_of_use() -> None:
    options = CacheOptions(block_tokens=16, max_running=4, context=1000)
    assert block_count(options, BLOCK, 100 * BLOCK, 100 * BLOCK) == 100
    assert block_count(options, BLOCK, 10**6 * BLOCK, 10**6 * BLOCK) == 4 * 63


def test_one_whole_context_may_take_more_than_the_usual_share() -> None:
    options = CacheOptions(block_tokens=16, context=1600)
    assert block_count(options, BLOCK, 20 * BLOCK, 500 * BLOCK) == 100
    assert block_count(options, BLOCK, 20 * BLOCK, 60 * BLOCK) == 60


@pytest.mark.parametrize("options", [CacheOptions(size_bytes=5), CacheOptions()])
def test_no_room_is_said(options: CacheOptions) -> None:
    with pytest.raises(DeviceOutOfMemory, match="no room"):
        block_count(options, BLOCK, BLOCK - 1, BLOCK - 1)


def test_a_cpu_lends_a_modest_share() -> None:
    usual, most = cpu_room()
    assert 0 < usual < most <= available_bytes() * 0.6


def test_a_gpu_keeps_a_reserve_for_steps() -> None:
    assert cuda_room(20 * GIB, 25 * GIB) == (18 * GIB, 18 * GIB)
    assert cuda_room(4 * GIB, 4 * GIB) == (3 * GIB + GIB // 2, 3 * GIB + GIB // 2)
    assert cuda_room(GIB // 4, 4 * GIB) == (0, 0)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMORY = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {8 * GIB // 1024} kB\n"}


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    assert available_bytes(write(tmp_path, MEMORY)) == 8 * GIB


def test_without_a_linux_it_is_a_guess(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 2 * GIB


@pytest.mark.parametrize("limited", ["", "pod/"])
def test_the_tightest_control_group_decides(tmp_path: Path, limited: str) -> None:
    group = {
        "proc/self/cgroup": "0::/pod/us\n",
        "sys/fs/cgroup/pod/us/memory.max": "max\n",
        "sys/fs/cgroup/pod/us/memory.current": f"{GIB}\n",
        f"sys/fs/cgroup/{limited}memory.max": f"{3 * GIB}\n",
        f"sys/fs/cgroup/{limited}memory.current": f"{2 * GIB}\n",
        f"sys/fs/cgroup/{limited}memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    assert available_bytes(write(tmp_path, MEMORY | group)) == GIB + GIB // 2


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    group = {
        "proc/self/cgroup": "5:memory:/us\n3:cpu:/us\n",
        "sys/fs/cgroup/memory/us/memory.limit_in_bytes": f"{2 * GIB}",
        "sys/fs/cgroup/memory/us/memory.usage_in_bytes": f"{GIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}",
    }
    assert available_bytes(write(tmp_path, MEMORY | group)) == GIB


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    group = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100",
        "sys/fs/cgroup/memory.current": "150",
    }
    assert available_bytes(write(tmp_path, MEMORY | group)) == 0
