"""The layers that the architecture page draws are those that the contract holds."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _drawn() -> list[set[str]]:
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = next(block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if block.startswith("main ->"))
    return [set(layer.replace(",", " ").split()) for layer in picture.split("->")]


def _held() -> list[set[str]]:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = next(section for section in contracts.values() if section.get("name") == "Layers of the gateway")["layers"]
    return [
        {name.strip(" ()").removeprefix("server.") for name in line.split("|")} for line in layers.strip().splitlines()
    ]


def test_the_page_draws_the_layers_that_are_held() -> None:
    assert _drawn() == _held()
