"""Write the pinned requirements files from the ranges in pyproject.toml and what is installed here.

`requirements.txt` is the closure of the gateway and the GPU node, `requirements-dev.txt` adds what tests, checks and
measurements want. A pin is the version installed in the environment that runs this, so install the wanted versions
first. Nothing is asked of the network. `--check` writes nothing and fails where a file is stale.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
# torch names an exact set of these for the machine it lands on; a pin of ours would break every other machine.
LEFT_TO_TORCH = ("nvidia-", "triton", "cuda-")
HEADER = "# Written by scripts/pin from pyproject.toml: change the ranges there, install, and run it again.\n"


def main(arguments: list[str]) -> int:
    files = pinned_files(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    if arguments == ["--check"]:
        stale = [name for name, text in files.items() if (ROOT / name).read_text(encoding="utf-8") != text]
        for name in stale:
            print(f"{name} is not what pyproject.toml and this environment give: run scripts/pin --installed")
        return 1 if stale else 0
    for name, text in files.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


def pinned_files(project: dict[str, Any]) -> dict[str, str]:
    extras = project["optional-dependencies"]
    base = _pins([*project["dependencies"], *extras["gpu"]])
    develop = _pins(extras["dev"], known=base)
    return {
        "requirements.txt": _text(base),
        "requirements-dev.txt": _text(develop, include="requirements.txt"),
    }


def _pins(direct: Iterable[str], known: dict[str, str] | None = None) -> dict[str, str]:
    """Name to its line, for everything that `direct` pulls in and `known` lacks."""
    skip = known or {}
    pins: dict[str, str] = {}
    waiting = [Requirement(line) for line in direct]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name.startswith(LEFT_TO_TORCH):
            continue
        seen.add(key)
        if name not in skip:
            pins[name] = f"{name}=={_version(name)}{_platform(requirement)}"
        waiting.extend(_children(name, requirement.extras))
    return pins


def _version(name: str) -> str:
    # A wheel built for the CPU calls itself 2.13.0+cpu; the same release has no such suffix on other machines.
    return Version(metadata.version(name)).public


def _platform(requirement: Requirement) -> str:
    marker = str(requirement.marker) if requirement.marker else ""
    return '; sys_platform != "win32"' if "win32" in marker and "!=" in marker else ""


def _children(name: str, extras: set[str]) -> Iterator[Requirement]:
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        wanted = extras or {""}
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in wanted):
            yield requirement


def _text(pins: dict[str, str], include: str = "") -> str:
    head = HEADER + (f"-r {include}\n" if include else "")
    return head + "".join(f"{pins[name]}\n" for name in sorted(pins))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
