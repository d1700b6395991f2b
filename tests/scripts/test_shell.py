"""Every shell script: whole, executable, free of what shellcheck finds, and no newer than the bash of macOS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.checkout import ROOT

SCRIPTS = sorted(
    path
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash\n")
)
SOURCED = sorted((ROOT / "scripts" / "lib").glob("*.sh"))
# Bash 4 and 5 have these, the 3.2 that macOS ships has not.
TOO_NEW = re.compile(r"\b(mapfile|readarray|declare -A|local -n|wait -n|coproc)\b|\$\{[a-z_]+(,,|\^\^|@Q)|&>>|\|&")
# GNU's only, or not on every machine.
NOT_EVERYWHERE = re.compile(
    r"\b(sudo|realpath|readlink -f|sha256sum|sed -i|grep -P|date -d|timeout|curl|wget|(?<![.])flock)\b"
)


def test_the_scripts_are_found() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"run", "test", "check", "format", "coverage", "bench", "pin"} <= names
    assert SOURCED


@pytest.mark.parametrize("path", [*SCRIPTS, *SOURCED], ids=lambda path: path.name)
def test_bash_reads_it(path: Path) -> None:
    read = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_is_executable_and_stops_at_errors(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("path", [*SCRIPTS, *SOURCED], ids=lambda path: path.name)
def test_it_works_with_the_tools_of_macos(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code = line.split("#")[0]
        assert not TOO_NEW.search(code), f"{path.name}:{number}: {line}"
        told = re.sub(r'"[^"]*"|\'[^\']*\'', "", code)
        assert not NOT_EVERYWHERE.search(told), f"{path.name}:{number}: {line}"


def test_shellcheck_finds_nothing() -> None:
    # Beside this interpreter, as scripts/check calls it; elsewhere on the path otherwise.
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck is not None, "pip install -r requirements-dev.txt brings it"
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *map(str, [*SCRIPTS, *SOURCED])]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


def test_every_script_has_its_line_in_the_readme() -> None:
    readme = (ROOT / "scripts" / "README.md").read_text()
    missing = [path.name for path in SCRIPTS if f"`{path.relative_to(ROOT)}`" not in readme]
    assert missing == []
