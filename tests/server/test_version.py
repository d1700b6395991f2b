"""One version everywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

from server.version import VERSION


def test_the_gateways_version_is_the_packages():
    metadata = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert metadata["project"]["version"] == VERSION
