"""`potluck models`: what is advised, what is asked of the gateway, what is shown, and how it ends."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.models import held_models, model_remarks, model_table
from tests.potluck.cli.terminal import CTRL_C, Terminal
from tests.potluck.loopback import Exchange, Loopback

runner = CliRunner()


def models(*arguments: str, **more: Any) -> Result:
    return runner.invoke(app, ["models", *arguments], **more)


def test_a_model_for_so_much_memory() -> None:
    done = models("recommend", "--ram", "6")
    assert done.exit_code == 0
    assert done.stdout.startswith("qwen2.5:1.5b  (986 MB to download)\n")
    assert "potluck phones invite --model qwen2.5:1.5b" in done.stdout
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


def test_without_a_memory_a_chip_shows_what_was_measured_on_it() -> None:
    done = models("recommend", "--chip", "GS101")
    assert "12 GB  qwen2.5:7b" in done.stdout and "Tensor G1" in done.stdout and "Snapdragon" not in done.stdout


def test_advice_as_json() -> None:
    told = json.loads(models("recommend", "--ram", "8", "--chip", "GS101", "--json").stdout)
    assert (told["model"], told["largest_that_fits"]) == ("qwen2.5:1.5b", "llama3.2:3b")
    assert told["expected_tokens_per_second"] == [8.8, 8.8]


def test_no_phone_has_such_a_memory() -> None:
    assert models("recommend", "--ram", "0").exit_code == 2
    assert models("recommend", "--ram", "1000").exit_code == 2


# -- with a gateway ----------------------------------------------------------------------------------------------------

LISTED = {
    "models": [
        {"name": "qwen:1b", "nodes": [
            {"node": "Kitchen", "loaded": True, "available": True, "size_bytes": 986_000_000, "digest": "a"},
            {"node": "At\x1b[2Jtic", "loaded": False, "available": True, "size_bytes": 1, "digest": "b"},
            {"node": "tower", "loaded": False, "available": False, "size_bytes": 5},
        ]},
        {"name": "fetchable", "nodes": [{"node": "tower", "available": False}]},
        {"name": "old:1b", "nodes": [{"node": "Kitchen", "loaded": False, "available": True, "size_bytes": None}]},
    ],
    "silent": [{"node": "desk", "error": "no route"}],
}  # fmt: skip


def against(server: Loopback, *arguments: str, **more: Any) -> Result:
    return models(*arguments, "--url", server.url, **more)


def test_which_node_has_which_model() -> None:
    with Loopback(lambda exchange: exchange.send(200, LISTED)) as server:
        done, as_json = against(server, "list"), against(server, "list", "--json")
    head, qwen, old, differs, silent = done.stdout.splitlines()
    assert head.split() == ["MODEL", "SIZE", "Kitchen", "At�[2Jtic"]
    assert qwen.split() == ["qwen:1b", "986", "MB", "in", "memory", "yes"]
    assert old.split() == ["old:1b", "-", "yes", "-"]
    assert "not the same everywhere" in differs and silent == "! desk did not answer: no route"
    assert "\x1b" not in done.stdout and json.loads(as_json.stdout) == LISTED


def test_a_fleet_too_wide_for_the_screen_is_names_in_a_row() -> None:
    copies = {f"p{number}": {"loaded": number > 1, "size_bytes": 1000} for number in range(5)}
    wide = model_table([("m", copies)], None)
    assert model_table([("m", copies)], max(map(len, wide))) == wide
    narrow = model_table([("m", copies)], max(map(len, wide)) - 1)
    assert narrow == ["MODEL  SIZE  IN MEMORY OF  ALSO ON", "m      1 kB  p2, p3, p4    p0, p1"]


@pytest.mark.parametrize("width", [1, 20, 40, 60])
def test_names_that_fit_no_row_are_below_their_model_and_stay_whole(width: int) -> None:
    names = [f"Phone-{number} of mine" for number in range(40)]
    copies = {name: {"loaded": name == names[3], "size_bytes": 1000} for name in names}
    lines = model_table([("m:1b", copies), ("n:1b", {names[0]: {}})], width)
    assert lines[0] == "m:1b  1 kB" and lines[1].startswith("  in memory of") and "n:1b  -" in lines
    assert all(len(line) <= max(width, 20) for line in lines)
    told = " ".join(" ".join(lines).split())
    assert "also on " + ", ".join(name for name in names if name != names[3]) + " n:1b" in told


def test_odd_words_of_a_node_are_no_fault() -> None:
    copies = [{"node": "a", "digest": ["x"], "size_bytes": "5"}, {"node": ["b"], "digest": {"y": 1}}, "c", None]
    models = held_models({"models": [{"name": {"n": 1}, "nodes": copies}, {"nodes": 5}, 7]})
    assert len(model_table(models, 80)) == 2
    assert "not the same everywhere" in model_remarks(models, {"silent": "x"})[0]


def test_no_models_at_all() -> None:
    with Loopback(lambda exchange: exchange.send(200, {"models": [], "silent": []})) as server:
        assert "potluck models pull" in against(server, "list").stdout


def step(node: str, status: str, completed: int | None = None, **more: Any) -> dict[str, Any]:
    told = {"node": node, "status": status, **more}
    return told if completed is None else {**told, "digest": "sha256:1", "total": 2_000_000_000, "completed": completed}


GOOD = [
    step("Kitchen", "waiting"),
    step("Kitchen", "pulling manifest"),
    *(step("Kitchen", "pulling 17", count * 50_000_000) for count in range(41)),
    step("Kitchen", "trying again", reason="unexpected EOF", in_seconds=1.0),
    step("Kitchen", "pulling 17", 2_000_000_000),
    step("Kitchen", "verifying sha256 digest"),
    step("Kitchen", "success"),
    {"status": "done", "model": "qwen:1b", "pulled": ["Kitchen"], "had": ["Attic"], "failed": {}},
]
BAD = [
    step("Full", "waiting"),
    step("Full", "error", error="its storage is \x1b[2Jfull"),
    {"status": "done", "model": "qwen:1b", "pulled": [], "had": [], "failed": {"Full": "its storage is full"}},
]


def pulling(lines: list[dict[str, Any]]) -> Loopback:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.record(*lines)
        exchange.end()

    return Loopback(answer)


def test_a_pull_without_a_terminal_is_lines() -> None:
    with pulling(GOOD) as server:
        done = against(server, "pull", "qwen:1b", "--all", "--at-once", "2", env={"POTLUCK_API_KEY": "key"})
        (asked,) = server.requests
    assert (asked.method, asked.path) == ("POST", "/api/models/pull")
    assert json.loads(asked.body) == {"model": "qwen:1b", "all": True, "at_once": 2}
    assert asked.headers["authorization"] == "Bearer key"
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "Kitchen: pulling manifest",
        *(f"Kitchen: {percent} % of 2.00 GB" for percent in range(0, 101, 10)),
        "Kitchen: trying again: unexpected EOF",
        "Kitchen: 100 % of 2.00 GB",
        "Kitchen: verifying sha256 digest",
        "Kitchen: done (2.00 GB)",
        "pulled onto 1, 1 had it already",
    ]


def test_a_phone_that_failed_is_an_exit_code_and_a_reason() -> None:
    with pulling(BAD) as server:
        done = against(server, "pull", "qwen:1b", "--node", "Full", "-n", "Attic")
        (asked,) = server.requests
    assert json.loads(asked.body)["nodes"] == ["Full", "Attic"]
    assert done.exit_code == 1 and "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0] == "Full: failed: its storage is �[2Jfull"
    assert done.stderr == "! 1 failed: Full\n"


def test_the_gateways_own_lines() -> None:
    with pulling(GOOD) as server:
        done = against(server, "pull", "qwen:1b", "--all", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == GOOD


@pytest.mark.parametrize("where", [[], ["--all", "--node", "x"]])
def test_where_to_must_be_said(where: list[str]) -> None:
    done = models("pull", "qwen:1b", *where)
    assert done.exit_code == 2 and "--all, or --node" in done.stderr


def test_a_pull_that_is_cut_short_or_refused_is_told_so() -> None:
    with pulling(GOOD[:5]) as server:
        done = against(server, "pull", "qwen:1b", "--all")
        assert done.exit_code == 1 and "did not tell how the pull ended" in done.stderr
    with pulling([*GOOD[:5], {"error": "the gateway was stopped"}]) as server:
        done = against(server, "pull", "qwen:1b", "--all")
        assert done.exit_code == 1 and done.stderr.startswith("error: the gateway was stopped.")
    with Loopback(lambda exchange: exchange.send(503, {"error": "the fleet has no phone"})) as server:
        done = against(server, "pull", "qwen:1b", "--all")
        assert done.exit_code == 1 and done.stderr.startswith("error: the fleet has no phone.")


def test_at_a_terminal_there_is_a_bar_for_each_phone() -> None:
    held = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.record(*GOOD[:20], step("Attic", "pulling 17", 1_000_000))
        held.wait(60.0)
        exchange.record(*GOOD[20:])
        exchange.end()

    with Loopback(answer) as server, Terminal(server.url, "models", "pull", "qwen:1b", "--all", size=(110, 24)) as seen:
        seen.wait_for("Kitchen ━")
        seen.wait_for("GB")
        seen.wait_for("Attic")
        held.set()
        seen.wait_for("Kitchen: trying again: unexpected EOF")
        seen.wait_for("Kitchen: done (2.00 GB)")
        seen.wait_for("pulled onto 1, 1 had it already")
        assert seen.end() == 0


def test_ctrl_c_says_that_nothing_is_lost_and_hangs_up() -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.record(*GOOD[:5])
        exchange.wait_until_left()

    with Loopback(answer) as server:
        with Terminal(server.url, "models", "pull", "qwen:1b", "--all") as seen:
            seen.wait_for("Kitchen ━")
            seen.press_until(CTRL_C, "stopped; the phones keep what they have")
            assert seen.end() == 130
        assert server.exchanges[0].left.wait(60.0)
