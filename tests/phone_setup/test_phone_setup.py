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


@pytest.mark.timeout(900)  # a hundred tests, on a machine that may have other work
def test_on_a_fake_termux(tmp_path: Path) -> None:
    """Four files at a time, the largest first: half of their time they wait for a process to start or to end."""
    for name in ("tmux", "curl", "bats"):
        _program(name)
    checker = shutil.which("shellcheck", path=TOOLS) or ""
    environment = {**os.environ, "PATH": TOOLS, "FAKE_PYTHON": sys.executable}
    one = 'bats --tap "$1" >"$2/${1##*/}" 2>&1'
    run = subprocess.run(
        [_program("xargs"), "-d", "\n", "-P", "4", "-I", "{}", "bash", "-c", one, "-", "{}", tmp_path],
        input="\n".join(str(path) for path in sorted(BATS, key=lambda path: -path.stat().st_size)),
        text=True,
        check=False,
        env={**environment, **({"SHELLCHECK": checker} if checker else {})},
    )
    said = {path: (tmp_path / path.name).read_text() for path in BATS}
    failed = [text[text.find("not ok") :] for text in said.values() if "not ok" in text]
    assert failed == []
    for path, text in said.items():
        assert len(re.findall(r"^ok ", text, re.M)) == len(re.findall(r"^@test ", path.read_text(), re.M)) > 0, text
    assert run.returncode == 0


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
    # Nothing happens before the last line is there, nor after it.
    assert re.search(r"^if \[ [^\n]* \]; then\n    main [^\n]*\n    exit\nfi\n\Z", text, re.M)


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


def test_the_documents_quote_what_the_script_says() -> None:
    said = SCRIPT.read_text()
    table = (
        (ROOT / "docs" / "phones.md")
        .read_text()
        .partition("In Termux, while the script runs:\n\n")[2]
        .partition("\n\n")[0]
    )
    quoted = [words for row in table.splitlines()[2:] for words in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 15
    assert [words for words in quoted if any(part.strip() not in said for part in words.split("…"))] == []


def test_every_option_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "phones.md").read_text()
    options = set(re.findall(r"^\s+(?:-h \| )?(--[a-z-]+)\)", SCRIPT.read_text(), re.M))
    assert {"--proot", "--bench", "--usb", "--dry-run", "--uninstall", "--model-file", "--help"} <= options
    assert sorted(option for option in options if f"`{option}" not in page) == []
