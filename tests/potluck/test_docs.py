"""The pages on the client and the command say all there is, and nothing that is not."""

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

import potluck
from potluck.asking import AskOptions
from potluck.cli import app
from potluck.cli.chat import HELP
from potluck.cli.fleet_columns import COLUMNS

DOCS = Path(potluck.__file__).parents[1] / "docs"
CLIENT = (DOCS / "client.md").read_text(encoding="utf-8")
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def section(command):
    return CLI.partition(f"## potluck {command}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", [name for name in potluck.__all__ if not name.startswith("_")])
def test_every_exported_name_is_explained(name):
    assert re.search(rf"`(potluck\.)?{name}[`(]|`{name}`s|[ (]`{name}`", CLIENT)


@pytest.mark.parametrize("name", get_type_hints(AskOptions))
def test_every_option_of_the_client_is_named(name):
    assert f"`{name}`" in CLIENT


@pytest.mark.parametrize("field", potluck.Timeouts.__slots__)
def test_every_timeout_has_its_default(field):
    row = re.search(rf"\| `{field}` \| (\d+) \|", CLIENT)
    assert row
    assert float(row[1]) == getattr(potluck.Timeouts(), field)


@pytest.mark.parametrize("field", [*potluck.Answer.__slots__, *potluck.Health.__slots__, *potluck.Timings.__slots__])
def test_every_field_of_an_answer_and_of_health_is_named(field):
    assert f"`{field}`" in CLIENT


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_is_explained(command):
    assert f"| `potluck {command}` |" in CLI
    flags = {flag for parameter in COMMANDS[command].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    missing = {flag for flag in flags if flag.startswith("-") and flag not in section(command)}
    assert missing - {"-h", "--help"} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_is_explained_that_does_not_exist(command):
    flags = {flag for parameter in COMMANDS[command].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    told = set(re.findall(r"(?<=`)--[a-z-]+", re.sub(r"All other flags.*", "", section(command), flags=re.DOTALL)))
    assert told <= flags | {"--help"}


def test_every_order_of_the_chat_is_explained():
    for order in re.findall(r"^  (/\w+)", HELP, re.MULTILINE):
        assert f"`{order}" in section("chat")


@pytest.mark.parametrize("column", [column.title for column in COLUMNS])
def test_every_column_is_explained(column):
    assert column in section("status")


def test_the_examples_are_python():
    for example in re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL):
        compile(example, "client.md", "exec")
