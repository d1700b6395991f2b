"""A scratch copy of the repository's scripts, with a stand-in for Python that writes down what is asked of it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a script may use beside Python: the tools of every Linux and macOS, and nothing that has to be installed.
PLAIN_TOOLS = ("bash", "basename", "cat", "chmod", "cmp", "cp", "dirname", "env", "mkdir", "mktemp", "mv", "rm", "tr")

STAND_IN = """#!/usr/bin/env bash
case "${1:-}" in
    -c | - | */pins_met.py) ;;
    *) printf '%s\\n' "$*" >>"$STAND_IN_LOG" ;;
esac
case "${1:-} ${2:-}" in
    "- ") cat >/dev/null ;;
    "-c "*platform*) echo "${STAND_IN_VERSION:-3.12.1}" ;;
    "-c "*ensurepip*) exit "${STAND_IN_UNFIT:-0}" ;;
    "-c "*pip*) if [ -e "$(dirname "$0")/../half-made" ]; then exit 1; fi ;;
    "-c "*version_info*) exit "${STAND_IN_OLD:-0}" ;;
    "-m venv") rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    */pins_met.py*) exit "${STAND_IN_MET:-1}" ;;
    "-m pip") exit "${STAND_IN_PIP_STATUS:-0}" ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """`run` gives the script only the plain tools and the stand-in; `asked` is what the stand-in was asked."""

    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    @property
    def _log(self) -> Path:
        return self.folder.parent / "asked.log"

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self._log.write_text("")
        return subprocess.run(
            ["bash", *command],
            cwd=self.folder,
            env={"PATH": str(self.folder.parent / "bin"), "STAND_IN_LOG": str(self._log), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def install(self, *files: str, **environment: str) -> subprocess.CompletedProcess[str]:
        names = " ".join(files or ("requirements.txt",))
        code = f"set -euo pipefail; . scripts/lib/environment.sh; ensure_environment {names}; echo installed"
        return self.run("-c", code, **environment)

    @property
    def asked(self) -> list[str]:
        return self._log.read_text().splitlines()


def make_checkout(folder: Path, python_names: tuple[str, ...] = ("python3",)) -> Checkout:
    repository, binaries = folder / "repository", folder / "bin"
    binaries.mkdir()
    for tool in PLAIN_TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (binaries / tool).symlink_to(found)
    for name in python_names:
        (binaries / name).write_text(STAND_IN)
        (binaries / name).chmod(0o755)
    shutil.copytree(ROOT / "scripts", repository / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, repository / name)
    return Checkout(repository)
