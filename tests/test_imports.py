"""Imports: one direction, no cycle, nothing heavy and no work at import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("wire", "transport", "server", "gpu_node", "potluck")


def _contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "scripts/lib/contracts.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "scripts/lib"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_contracts_are_kept() -> None:
    done = _contracts(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("server/errors.py", "import gpu_node.errors", "The gateway and the GPU node never see each other"),
        ("gpu_node/errors.py", "import server.errors", "The gateway and the GPU node never see each other"),
        ("server/errors.py", "import potluck.errors", "The programs import nothing of what people type and import"),
        ("wire/errors.py", "import time", "The protocol does no I/O"),
        ("wire/errors.py", "import server.errors", "The protocol does no I/O"),
        ("wire/errors.py", "import wire.frames", "No import cycles"),
        ("potluck/gateway.py", "import potluck.cli", "Nothing imports the command line"),
        ("potluck/gateway.py", "import server.errors", "The client library imports neither program"),
        ("server/settings.py", "import torch", "The gateway works where torch is not installed"),
        ("server/errors.py", "import server.registry", "Layers of the gateway"),
        ("gpu_node/engine/engine.py", "import torch", "Only the runner of the engine"),
        ("potluck/errors.py", "import potluck.gateway", "No import cycles"),
    ],
)
def test_each_contract_would_be_missed(copy: Path, file: str, line: str, contract: str) -> None:
    with (copy / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = _contracts(copy)
    assert done.returncode == 1
    # Long names are wrapped at the width of the terminal, so the first words have to do.
    assert any(told.startswith(contract[:40]) and "BROKEN" in told for told in _unwrapped(done.stdout)), done.stdout


def _unwrapped(output: str) -> list[str]:
    return output.replace("\none KEPT", " KEPT").replace("\none BROKEN", " BROKEN").splitlines()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("wire.connection", {"asyncio", "socket", "threading", "numpy", "json"}),
        ("server", {"torch", "pydantic", "starlette", "uvicorn"}),
        ("gpu_node", {"torch", "transformers", "numpy"}),
        ("gpu_node.model_store", {"torch", "transformers", "numpy"}),
        ("potluck", {"torch", "server", "gpu_node", "typer", "rich"}),
    ],
)
def test_importing_is_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
