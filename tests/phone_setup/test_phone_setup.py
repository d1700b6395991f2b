"""The phone's set-up script: its tests in bats, its form, and that what documents say of it is so.

The behaviour is held by the .bats files beside this one, over a fake Termux; bats, tmux and shfmt are programs of the
system, so without them these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.checkout import ROOT

HERE = Path(__file__).parent
SCRIPT = ROOT / "phone_setup" / "phone_setup.sh"
STUB = ROOT / "tests" / "fakes" / "termux" / "bin" / "stub"
BATS = sorted(HERE.glob("*.bats"))
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _program(name: str) -> str:
    found = shutil.which(name, path=TOOLS)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("path", BATS, ids=lambda path: path.stem)
def test_on_a_fake_termux(path: Path) -> None:
    for name in ("tmux", "curl"):
        _program(name)
    checker = shutil.which("shellcheck", path=TOOLS) or ""
    environment = {**os.environ, "FAKE_PYTHON": sys.executable, **({"SHELLCHECK": checker} if checker else {})}
    run = subprocess.run(
        [_program("bats"), "--tap", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    failed = run.stdout[run.stdout.find("not ok") :] if "not ok" in run.stdout else run.stdout
    assert run.returncode == 0, failed + run.stderr
    passed = len(re.findall(r"^ok ", run.stdout, re.M))
    assert passed == len(re.findall(r"^@test ", path.read_text(), re.M)) > 0


def test_there_are_tests_of_every_kind() -> None:
    assert {path.stem for path in BATS} == {"checks", "control", "debian", "install", "joining", "models"}


@pytest.mark.parametrize("path", [SCRIPT, STUB, HERE / "termux.bash"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    found = subprocess.run([_program("shellcheck"), "-s", "bash", path], capture_output=True, text=True, check=False)
    assert (found.stdout, found.returncode) == ("", 0)


@pytest.mark.parametrize("path", [SCRIPT, STUB, HERE / "termux.bash", *BATS], ids=lambda path: path.name)
def test_it_is_in_form(path: Path) -> None:
    dialect = "bats" if path.suffix == ".bats" else "bash"
    command = [_program("shfmt"), "-ln", dialect, "-i", "4", "-ci", "-d", path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.stdout + found.stderr, found.returncode) == ("", 0)


def test_it_stands_alone_and_names_no_path_of_termux() -> None:
    text = SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK)
    assert "set -euo pipefail" in text
    assert "/data/data" not in text and "com.termux/" not in text
    assert text.rstrip().splitlines()[-1].lstrip().startswith("if [ ")  # nothing happens before the last line is there


def test_its_functions_can_be_read_in_one_go() -> None:
    bodies = re.findall(r"^(\w+)\(\) \{.*?\n(.*?)^\}", SCRIPT.read_text(), re.M | re.S)
    assert len(bodies) > 80
    texts_of_files = {"start_text", "report_text"}
    lengths = {name: body.count("\n") for name, body in bodies if name not in texts_of_files}
    assert {name: length for name, length in lengths.items() if length > 45} == {}


def _ram_table() -> list[list[str]]:
    table = re.search(r"^readonly RAM_TABLE='(.*?)'$", SCRIPT.read_text(), re.M | re.S)
    assert table is not None
    return [line.split("|") for line in table[1].splitlines()]


def test_the_table_by_ram_is_the_one_in_the_documents() -> None:
    page = (ROOT / "docs" / "phones.md").read_text()
    lines = [f"| {sold} GB | `{model}` | {download} MB |" for sold, _, model, download, _, _ in _ram_table()]
    assert [line for line in lines if line not in page] == []


def test_every_option_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "phones.md").read_text()
    options = set(re.findall(r"^\s+(?:-h \| )?(--[a-z-]+)\)", SCRIPT.read_text(), re.M))
    assert {"--proot", "--bench", "--usb", "--dry-run", "--uninstall", "--model-file", "--help"} <= options
    assert sorted(option for option in options if f"`{option}" not in page) == []
