"""Dependencies: pinned, ranged, explained, and none that nobody imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
DIRECT = [*RUNTIME, *(requirement for extra in EXTRAS.values() for requirement in extra)]
PACKAGES = ("wire", "transport", "server", "gpu_node", "potluck")
FILES = sorted(ROOT.glob("requirements*.txt"))
PIN = re.compile(r"^[a-z0-9-]+==[0-9][0-9a-z.]*(; sys_platform != \"win32\")?$")
# Used by a library on our behalf, so that no import of ours names them.
UNSEEN = {
    "accelerate": "transformers",
    "adbutils": "server/adb/binary.py",
    "gguf": "transformers",
    "numpy": "transformers",
    "safetensors": "transformers",
    "uvloop": "uvicorn",
    "uvicorn": "scripts/run",
}
# Imported where it is there, and there because another one of ours brings it along.
BROUGHT_ALONG = {"ifaddr": "zeroconf"}


def _pins() -> dict[str, Requirement]:
    lines = [line for path in FILES for line in path.read_text().splitlines() if "==" in line]
    return {Requirement(line).name: Requirement(line) for line in lines}


def _version(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_line_is_a_pin(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("#", "-r "))]
    assert lines
    assert [line for line in lines if not PIN.match(line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_the_range_admits_the_pin(requirement: Requirement) -> None:
    pin = _pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(_version(pin)), f"{requirement} against {pin}"


def test_the_pins_are_what_is_installed_and_nothing_is_missing() -> None:
    command = [sys.executable, str(ROOT / "scripts/lib/pins.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_torch_is_one_release() -> None:
    assert [str(requirement) for requirement in EXTRAS["gpu"] if requirement.name == "torch"] == ["torch==2.13.0"]
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()
    assert metadata.version("torch").partition("+")[0] == "2.13.0"


def test_a_fleet_of_phones_needs_no_torch() -> None:
    heavy = {requirement.name for requirement in EXTRAS["gpu"]}
    assert heavy & _closure({requirement.name for requirement in RUNTIME}) == set()


def test_what_belongs_to_the_machine_is_left_to_torch() -> None:
    assert [name for name in _pins() if name.startswith(("nvidia", "triton", "cuda"))] == []


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_has_its_reason(requirement: Requirement) -> None:
    lines = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    reasons = [line for line in lines if line.startswith(f"| `{requirement.name}` | ")]
    assert len(reasons) == 1
    assert len(reasons[0].split("|")[2].strip()) > 10


def test_no_reason_outlives_its_dependency() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    told = set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE))
    assert told == {requirement.name for requirement in DIRECT}


def test_every_import_is_a_direct_dependency() -> None:
    allowed = {requirement.name for requirement in [*RUNTIME, *EXTRAS["gpu"]]}
    foreign = {
        package: path
        for path, package in _imports(*PACKAGES)
        if package not in allowed and BROUGHT_ALONG.get(package) not in allowed
    }
    assert foreign == {}
    assert all(package in _closure({owner}) for package, owner in BROUGHT_ALONG.items())


def test_every_dependency_is_imported() -> None:
    imported = {package for _, package in _imports(*PACKAGES)}
    idle = {requirement.name for requirement in [*RUNTIME, *EXTRAS["gpu"]]} - imported - UNSEEN.keys()
    assert idle == set()


def _imports(*folders: str) -> set[tuple[str, str]]:
    """File and distribution of every third-party import, lazy ones included."""
    names = metadata.packages_distributions()
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for module in _modules(node):
                for distribution in names.get(module.partition(".")[0], []):
                    found.add((str(path.relative_to(ROOT)), canonicalize_name(distribution)))
    return {(path, name) for path, name in found if name != canonicalize_name(PROJECT["name"])}


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def _closure(names: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
