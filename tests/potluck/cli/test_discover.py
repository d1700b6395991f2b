"""`potluck discover`: what people and programs get, and what is said where nobody answers."""

import dataclasses
import json
import subprocess
import sys

import pytest

from potluck.cli.discover import chosen_token, record_of, table
from potluck.errors import Misuse
from tests.potluck.cli.terminal import ROOT, environment, run
from tests.transport.ports import free_udp_port
from transport.found import Found
from wire.beacon import Address, Announcement

SAID = Announcement(
    bytes(range(16)), 5, 9, 0, "tower", (Address("192.168.1.20", 8765),), ("qwen2.5:7b",), True,
    18_200_000_000, 24_000_000_000, 0.25, token_wanted=True,
)  # fmt: skip
FOUND = Found(SAID, "192.168.1.20", 8766, True, 0.0042)


def test_the_table():
    assert table([FOUND]) == [
        "NODE   ADDRESS            FREE          LOAD  ANSWER  MODELS",
        "tower  192.168.1.20:8765  18.2/24.0 GB  25%   4 ms    qwen2.5:7b, …",
    ]
    assert table([]) == []


def test_a_stranger_cannot_steer_the_terminal_and_one_that_wants_a_token_is_marked():
    said = dataclasses.replace(SAID, name="a\x1b[2J", models=("m\x1b]0;x\x07",), addresses=(Address("fd00::2", 1),))
    lines = table([Found(said, "fd00::2", 8766, False)])
    assert "\x1b" not in "".join(lines)
    assert lines[1].startswith("node-00010203 (wants a token)  [fd00::2]:1")


def test_the_record():
    record = record_of(FOUND)
    assert json.loads(json.dumps(record)) == record
    assert record["addresses"] == [{"host": "192.168.1.20", "port": 8765}]
    assert (record["id"], record["verified"], record["milliseconds"]) == (bytes(range(16)).hex(), True, 4.2)
    assert record_of(Found(dataclasses.replace(SAID, load=float("inf")), "192.168.1.20", 1, True))["load"] is None


def test_where_the_token_comes_from(tmp_path):
    file = tmp_path / "token"
    file.write_text(" secret \n")
    assert chosen_token(file, {"VRM_API_TOKEN": "other"}) == "secret"
    assert chosen_token(None, {"VRM_API_TOKEN": " other "}) == "other"
    assert chosen_token(None, {}) is None
    file.write_text("\n")
    for path in (file, tmp_path / "none"):
        with pytest.raises(Misuse):
            chosen_token(path, {})


def test_nobody_answers():
    done = run("http://127.0.0.1:9", "discover", "--here", "-s", "0.05", "--port", str(free_udp_port()))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("No node answers.")
    assert "POTLUCK_NODE_TOKEN" in done.stderr


def test_a_name_is_refused_with_a_sentence():
    done = run("http://127.0.0.1:9", "discover", "tower.local")
    assert done.returncode == 2
    assert "tower.local is no address" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_of_this_machine_is_found():
    port = str(free_udp_port())
    variables = environment("http://127.0.0.1:9")
    command = [sys.executable, "-m", "tests.fakes.announcing_node", "--udp-port", port]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=variables, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as node:
        assert node.stdout.readline() == "ready\n"
        done = run("http://127.0.0.1:9", "discover", "--here", "--port", port, "--json", "-s", "0.5")
        node.stdin.close()
    (found,) = map(json.loads, done.stdout.splitlines())
    assert (found["name"], found["verified"]) == ("tower", False)
    assert found["addresses"] == [{"host": "127.0.0.1", "port": 8765}]
