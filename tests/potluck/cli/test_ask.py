"""`potluck ask`, in this process, as a process in a pipe, and at a terminal."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potluck.cli import app
from tests.potluck.cli.terminal import CTRL_C, PATIENCE_SECONDS, Terminal, environment, run
from tests.potluck.loopback import ANSWER, DONE, Exchange, Loopback, tell

runner = CliRunner()
capital = tell("Par", "is\n", "is\x1b[2J nice")


def ask(url, *arguments, given=None, **variables):
    return runner.invoke(app, ["ask", *arguments], input=given, env={"POTLUCK_URL": url, **variables})


@pytest.fixture
def server():
    with Loopback(capital) as server:
        yield server


def test_the_answer_goes_to_stdout_as_it_is(server):
    result = ask(server.url, "What is the capital of France?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Paris\nis\x1b[2J nice\n", "")
    assert server.requests[0].path == "/ask_stream"
    assert server.requests[0].json == {"prompt": "What is the capital of France?"}


def test_every_flag_arrives(server, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"cat")
    flags = ["-m", "m", "-s", "Be brief.", "-t", "0", "-n", "5", "--seed", "7", "--stop", "a", "--stop", "b"]
    more = ["--format", "json", "--image", str(tmp_path / "cat.png"), "-o", "top_k=3", "--no-cache", "--think"]
    assert ask(server.url, "hi", *flags, *more).exit_code == 0
    assert server.requests[0].json == {
        "prompt": "hi",
        "model": "m",
        "system": "Be brief.",
        "temperature": 0,
        "max_tokens": 5,
        "seed": 7,
        "stop": ["a", "b"],
        "format": "json",
        "images": ["Y2F0"],
        "options": {"top_k": 3},
        "cache": False,
        "think": True,
    }


@pytest.mark.parametrize(
    ("arguments", "given", "asked"),
    [
        (["Why?"], "a log\n", "a log\n\nWhy?"),
        ([], "a log\n", "a log"),
        (["-"], "a log\n", "a log"),
        (["Why?"], "", "Why?"),
    ],
)
def test_stdin_is_asked_about(server, arguments, given, asked):
    assert ask(server.url, *arguments, given=given).exit_code == 0
    assert server.requests[0].json == {"prompt": asked}


def test_json_is_the_whole_answer(server):
    result = ask(server.url, "hi", "--json")
    assert json.loads(result.stdout) == {**ANSWER, "response": "Paris\nis\x1b[2J nice"}
    assert "\x1b" not in result.stdout


def test_verbose_says_how_it_went(server):
    result = ask(server.url, "hi", "-v")
    assert result.stdout.endswith("nice\n")
    assert "pixel-3 · qwen2.5:0.5b · 3 tokens · 9.5 tokens/s" in result.stderr


def test_the_key_comes_from_the_environment_or_a_file(server, tmp_path):
    assert ask(server.url, "hi", POTLUCK_API_KEY="secret-1").exit_code == 0
    (tmp_path / "key").write_text("secret-2\n")
    assert ask(server.url, "hi", "--key-file", str(tmp_path / "key"), POTLUCK_API_KEY="secret-1").exit_code == 0
    keys = [request.headers["authorization"] for request in server.requests]
    assert keys == ["Bearer secret-1", "Bearer secret-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to ask"),
        (["hi", "-o", "top_k"], "looks like temperature=0.2"),
        (["hi", "--seed", "1", "-o", "seed=2"], "seed is given twice"),
        (["hi", "--image", "gone.png"], "cannot read the image gone.png"),
        (["hi", "--key-file", "gone"], "cannot read the key from gone"),
        (["hi", "--url", "ftp://x"], "no address of a gateway"),
        (["hi", "--bogus"], "--bogus"),
        (["hi", "--seed", "many"], "--seed"),
    ],
)
def test_wrong_use_is_code_2_and_asks_nothing(server, arguments, words):
    result = ask(server.url, *arguments, given="")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert server.requests == []


def test_a_gateway_that_is_not_there_says_how_to_start_one():
    with Loopback(capital) as server:
        url = server.url
    result = ask(url, "hi")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"no gateway answers at {url} (Connection refused)" in result.stderr
    assert "potluck serve" in result.stderr


def test_a_refusal_is_its_sentence_and_its_hint():
    error = {"code": "model_not_found", "message": "model 'x' not found", "hint": "did you mean y?"}
    with Loopback(lambda exchange: exchange.send(404, {"error": error})) as server:
        result = ask(server.url, "hi", "-m", "x")
    assert (result.exit_code, result.stderr) == (1, "error: model 'x' not found.\n       Did you mean y?\n")


def test_an_answer_that_is_cut_keeps_what_came():
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Par"}, {"error": {"code": "nodes_failed", "message": "pixel-3 broke"}})
        exchange.end()

    with Loopback(respond) as server:
        result = ask(server.url, "hi")
        assert (result.exit_code, result.stdout) == (1, "Par\n")
        assert "error: pixel-3 broke." in result.stderr
        whole = ask(server.url, "hi", "--json")
        assert (whole.exit_code, whole.stdout) == (1, "")


def endless(exchange: Exchange):
    exchange.begin()
    exchange.record({"token": "Par"}, {"token": "is"})
    exchange.wait_until_left()


def test_an_interrupt_keeps_what_came_and_closes_the_connection():
    with Loopback(endless) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "potluck", "ask", "hi"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server.url),
        )
        assert process.stdout.read(5) == b"Paris"  # it comes at once, not when a buffer is full
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, rest, complaints) == (130, b"\n", b"")
        assert server.exchanges[0].left.wait(PATIENCE_SECONDS)


def test_an_interrupt_at_a_terminal():
    with Loopback(endless) as server, Terminal(server.url, "ask", "hi") as terminal:
        terminal.wait_for("Paris")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
        assert server.exchanges[0].left.wait(PATIENCE_SECONDS)
        assert "Traceback" not in terminal.seen


def test_a_terminal_gets_places_thoughts_and_a_line_on_how_it_went():
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"queued": 2})
        waiting.set()
        seen.wait(PATIENCE_SECONDS)
        exchange.record({"thinking": "hmm\x1b[2J"}, {"token": "Par\x1b[2Jis"}, DONE)
        exchange.end()

    import threading

    waiting, seen = threading.Event(), threading.Event()
    with Loopback(respond) as server, Terminal(server.url, "ask", "hi") as terminal:
        terminal.wait_for("place 2 in the queue")
        seen.set()
        assert terminal.end() == 0
        assert server.requests[0].json == {"prompt": "hi", "progress": True}
    for words in ("hmm�[2J", "Par�[2Jis", "pixel-3 · qwen2.5:0.5b"):
        assert words in terminal.seen
    assert "\x1b[2J" not in terminal.raw


def in_a_shell(url, command):
    """The command's exit code and what it said on stderr."""
    line = f'{sys.executable} -m potluck {command}; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment(url), check=True)
    return done.stdout.strip(), done.stderr


def test_a_reader_that_leaves_ends_it_quietly(server):
    assert in_a_shell(server.url, "ask hi </dev/null | true") == ("141", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(server):
    code, said = in_a_shell(server.url, "ask hi </dev/null >/dev/full")
    assert (code, said) == ("1", "error: cannot write the answer: No space left on device.\n")


def test_a_shell_loop_over_dev_null_does_not_wait_for_stdin(server):
    done = run(server.url, "ask", "hi")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.requests[0].json == {"prompt": "hi"}


def test_stdin_that_is_no_text(server):
    done = run(server.url, "ask", given=b"\xff\xfe")
    assert done.returncode == 2
    assert "no UTF-8" in done.stderr


def test_a_terminal_without_the_characters_is_no_reason_to_fail():
    with Loopback(tell("żółć")) as server:
        done = run(server.url, "ask", "hi", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "????\n", "")
