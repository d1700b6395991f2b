"""The package as it is installed: whole, in any folder, without torch, and with nothing of the developer's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("wire", "transport", "server", "gpu_node", "potluck")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "models").mkdir()
    shutil.copy(ROOT / "models" / "manifest.json", source / "models")
    shutil.copytree(ROOT / "phone_setup", source / "phone_setup")
    (source / "models" / "mine.gguf").write_bytes(b"a file that somebody laid there")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(source / "out"), str(source))
    return next((source / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel; what the wheel needs is lent by this environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _ask(python: Path, folder: Path, code: str) -> str:
    done = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {name for name in listed.stdout.split() if (ROOT / name).exists()}
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_gateway_finds_the_script_that_it_serves_to_phones(installed: Path, tmp_path: Path) -> None:
    code = "from server.api.join import find_script; print(len(find_script() or b''))"
    assert _ask(installed, tmp_path, code) == str((ROOT / "phone_setup" / "phone_setup.sh").stat().st_size)


def test_nothing_else_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.startswith("potluck_llm-")} == set(PACKAGES)
    assert [name for name in names if name.endswith(".gguf")] == []


def test_it_asks_for_torch_only_with_the_extra(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: torch")]
    assert [line.replace('"', "'") for line in needs] == ["Requires-Dist: torch==2.13.0; extra == 'gpu'"]
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.parametrize("package", PACKAGES)
def test_it_is_imported_from_where_it_is_installed(installed: Path, tmp_path: Path, package: str) -> None:
    where = _ask(installed, tmp_path, f"import {package}; print({package}.__file__)")
    assert Path(where).is_relative_to(installed.parent.parent)


def test_the_gpu_node_finds_the_models_it_knows(installed: Path, tmp_path: Path) -> None:
    names = "from gpu_node.manifest import models_folder, read_manifest"
    code = f"{names}; print(read_manifest(models_folder()).find('default').name)"
    assert _ask(installed, tmp_path, code) == "smollm2:135m"


def test_the_application_is_built_in_any_folder(installed: Path, tmp_path: Path) -> None:
    assert _ask(installed, tmp_path, "from server import app; print(callable(app))") == "True"


def test_the_gateway_is_built_where_torch_is_not_installed(installed: Path, tmp_path: Path) -> None:
    absent = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None"
    code = f"{absent}; from server import app; print('built' if app else '')"
    assert _ask(installed, tmp_path, code) == "built"


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    command = [str(installed.parent / "potluck"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ask" in done.stdout and "serve" in done.stdout
