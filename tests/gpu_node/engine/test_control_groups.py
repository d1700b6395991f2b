"""How many processors' time a container has, by the files that Linux keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.engine.control_groups import granted_processors, group_folders


def written(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("limit", "processors"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1), ("max 100000\n", None), ("odd\n", None)],
)
def test_the_second_version_has_one_file(tmp_path: Path, limit: str, processors: int | None) -> None:
    root = written(tmp_path, proc__self__cgroup="0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(limit)
    assert granted_processors(root) == processors


def test_the_tightest_of_all_groups_counts(tmp_path: Path) -> None:
    root = written(tmp_path, proc__self__cgroup="0::/outer/inner\n")
    inner = root / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("800000 100000")
    (inner.parent / "cpu.max").write_text("300000 100000")
    assert granted_processors(root) == 3


@pytest.mark.parametrize(("quota", "processors"), [("400000", 4), ("-1", None)])
def test_the_first_version_has_two_files(tmp_path: Path, quota: str, processors: int | None) -> None:
    root = written(tmp_path, proc__self__cgroup="4:memory:/m\n3:cpu,cpuacct:/box\n")
    box = root / "sys/fs/cgroup/cpu,cpuacct/box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_quota_us").write_text(quota)
    (box / "cpu.cfs_period_us").write_text("100000")
    assert granted_processors(root) == processors
    assert next(iter(group_folders(root, "memory"))) == root / "sys/fs/cgroup/memory/m"


def test_other_systems_grant_everything(tmp_path: Path) -> None:
    assert granted_processors(tmp_path) is None
