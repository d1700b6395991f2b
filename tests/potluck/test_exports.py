"""The public edge: complete, importable, and light."""

import ast
import inspect
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import potluck

ROOT = Path(potluck.__file__).parents[1]
# Modules whose public classes are what users may need; the others are how it works inside.
PUBLIC_MODULES = (
    "errors",
    "timeouts",
    "gateway",
    "streams",
    "answers",
    "fleet",
    "relay",
    "relay_blocking",
    "relay_streams",
)


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_every_public_class_is_exported(module_name):
    module = import_module(f"potluck.{module_name}")
    classes = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert classes
    assert classes <= set(potluck.__all__)


def test_every_exported_name_is_there_once():
    assert len(set(potluck.__all__)) == len(potluck.__all__)
    for name in potluck.__all__:
        assert getattr(potluck, name) is not None
        assert name in dir(potluck)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "potluck" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.name for part in ast.walk(tree) if isinstance(part, ast.ImportFrom) and part.level for alias in part.names
    }
    assert imported == set(potluck.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Gatway"):
        potluck.Gatway  # noqa: B018


def test_the_version_is_that_of_the_package():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert potluck.__version__ == metadata["project"]["version"]


def third_party_after(code: str) -> set[str]:
    """Top-level packages outside the standard library that are loaded after running the code in a fresh Python."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split()) - sys.stdlib_module_names


def test_importing_everything_loads_httpx_and_lz4_and_nothing_else():
    everything = third_party_after("from potluck import *")
    assert {"httpx", "lz4"} <= everything
    assert everything - third_party_after("import httpx") <= {"potluck", "wire", "transport", "lz4", "isal", "ifaddr"}


def test_the_relays_client_loads_no_httpx_and_no_array_library():
    loaded = third_party_after("from potluck import AsyncRelay, Relay")
    assert not {"httpx", "numpy", "torch"} & loaded


def test_importing_the_package_alone_loads_nothing():
    assert third_party_after("import potluck") - third_party_after("pass") == {"potluck"}
