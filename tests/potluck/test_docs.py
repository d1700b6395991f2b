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
from potluck.relay_asking import EmbedOptions, GenerateOptions

DOCS = Path(potluck.__file__).parents[1] / "docs"
CLIENT = (DOCS / "client.md").read_text(encoding="utf-8")
RELAY = (DOCS / "relay.md").read_text(encoding="utf-8")
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
# Read and not imported, for that would import torch.
PLUG_INS = re.findall(r'^    "(\w+)",$', (DOCS.parent / "potluck/torch.py").read_text(encoding="utf-8"), re.MULTILINE)
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def flags_of(command):
    """Of a group: those of all its commands."""
    parameters = [*command.params]
    for one in getattr(command, "commands", {}).values():
        parameters += one.params
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}


def section(command):
    return CLI.partition(f"## potluck {command}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", [name for name in potluck.__all__ if not name.startswith("_")])
def test_every_exported_name_is_explained(name):
    assert re.search(rf"`(potluck\.)?{name}[`(]|`{name}`s|[ (]`{name}`", CLIENT + RELAY)


@pytest.mark.parametrize("name", get_type_hints(AskOptions))
def test_every_option_of_the_client_is_named(name):
    assert f"`{name}`" in CLIENT


@pytest.mark.parametrize("name", [*get_type_hints(GenerateOptions), *get_type_hints(EmbedOptions)])
def test_every_option_of_the_relays_client_is_named(name):
    assert f"`{name}`" in RELAY


@pytest.mark.parametrize(
    "field", [*potluck.Generation.__slots__, *potluck.Piece.__slots__, *potluck.LoadedModel.__slots__, "text", "ids"]
)
def test_every_field_of_the_relays_answers_is_named(field):
    assert f"`{field}`" in RELAY


@pytest.mark.parametrize("name", [name for name in vars(potluck.AsyncRelay) if not name.startswith("_")])
def test_every_call_of_the_relays_client_is_explained(name):
    assert re.search(rf"`(relay\.|Relay\.)?{name}[(`]", RELAY) or f".{name}(" in RELAY


@pytest.mark.parametrize("name", PLUG_INS)
def test_every_name_of_the_torch_plug_ins_is_explained(name):
    assert re.search(rf"`{name}[`(]", RELAY)


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
    flags = flags_of(COMMANDS[command])
    missing = {flag for flag in flags if flag.startswith("-") and flag not in section(command)}
    assert missing - {"-h", "--help"} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_is_explained_that_does_not_exist(command):
    flags = flags_of(COMMANDS[command])
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


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", RELAY, re.DOTALL))
def test_the_examples_of_the_relay_run(example, node, capsys):
    """As they stand but for address and model, on a real node. Discovery looks no further than this machine."""
    example = example.replace("192.168.1.20", node.place).replace("smollm2:135m", node.model)
    example = example.replace("discover(", "discover(this_machine=True, ")
    exec(compile(example, "relay.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out or "discover" in example
