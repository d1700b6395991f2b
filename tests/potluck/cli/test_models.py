"""`potluck models`: what is advised, what is asked of the gateway, what is shown, and how it ends."""

from __future__ import annotations

import json

from typer.testing import CliRunner, Result

from potluck.cli import app

runner = CliRunner()


def models(*arguments: str) -> Result:
    return runner.invoke(app, ["models", *arguments])


def test_a_model_for_so_much_memory() -> None:
    done = models("recommend", "--ram", "6")
    assert done.exit_code == 0
    assert done.stdout.startswith("qwen2.5:1.5b  (986 MB to download)\n")
    assert "bash phone_setup.sh qwen2.5:1.5b" in done.stdout
    assert "6 GB" in done.stdout and "8 GB" not in done.stdout  # lines that do not fit are no advice
    assert "Tensor" not in done.stdout


def test_a_chip_that_is_known_tells_its_speed_and_its_source() -> None:
    done = models("recommend", "--ram", "8", "--chip", "GS101")
    assert done.stdout.startswith("qwen2.5:1.5b")
    assert "about 9 tokens/s on a Tensor G1" in done.stdout and "elizaOS/eliza#11734" in done.stdout
    assert "llama3.2:3b would fit the memory too" in done.stdout


def test_a_chip_that_is_not_known_is_said_to_be_so() -> None:
    done = models("recommend", "--ram", "4", "--chip", "MT\x1b[2J9999")
    assert done.exit_code == 0 and done.stdout.startswith("gemma3:1b")
    assert "no measurement of 'MT" in done.stdout and "\x1b" not in done.stdout
    assert "Tensor G2" in done.stdout


def test_without_a_memory_the_tables() -> None:
    done = models("recommend")
    assert "12 GB  qwen2.5:7b" in done.stdout and "Snapdragon 8 Gen 2" in done.stdout
    told = json.loads(models("recommend", "--json").stdout)
    assert [line["ram_gb"] for line in told["by_ram"]] == [2, 3, 4, 6, 8, 12]
    assert told["by_chip"][0]["measured"][0]["source"]


def test_advice_as_json() -> None:
    told = json.loads(models("recommend", "--ram", "8", "--chip", "GS101", "--json").stdout)
    assert (told["model"], told["largest_that_fits"]) == ("qwen2.5:1.5b", "llama3.2:3b")
    assert told["expected_tokens_per_second"] == [8.8, 8.8]


def test_no_phone_has_such_a_memory() -> None:
    assert models("recommend", "--ram", "0").exit_code == 2
    assert models("recommend", "--ram", "1000").exit_code == 2
