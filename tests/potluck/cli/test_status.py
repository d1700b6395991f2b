"""`potluck status`: once, as JSON, and live at a terminal through a restart of the gateway."""

import json
import threading

import pytest
from typer.testing import CliRunner

from potluck.cli import app
from potluck.cli.status import Watch
from potluck.errors import AnswerTimeout, GatewayUnreachable, KeyRefused
from potluck.fleet import read_health
from tests.potluck.cli.terminal import CTRL_C, Terminal
from tests.potluck.loopback import Exchange, Loopback, health, node

runner = CliRunner()


def serve(*nodes, **facts):
    return Loopback(lambda exchange: exchange.send(200, health(*nodes, **facts)))


def status(url, *arguments):
    return runner.invoke(app, ["status", *arguments], env={"POTLUCK_URL": url, "COLUMNS": "80"})


@pytest.mark.parametrize("arguments", [[], ["--once"]])
def test_without_a_terminal_it_is_printed_once(arguments):
    with serve(node("pixel-3"), node("gone", status="silent", last_error="no answer")) as server:
        result = status(server.url, *arguments)
        assert result.exit_code == 0
        assert [request.path for request in server.requests] == ["/health"]
    for words in ("pixel-3", "● ready", "● silent", "! gone: no answer", "cache hits 40%"):
        assert words in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_is_the_gateways_own():
    with serve(node("pixel-3"), new_fact=1) as server:
        result = status(server.url, "--json")
    assert json.loads(result.stdout) == health(node("pixel-3"), new_fact=1)


def test_once_without_a_gateway_fails():
    with serve() as server:
        url = server.url
    for arguments in (["--once"], ["--json"]):
        result = status(url, *arguments)
        assert result.exit_code == 1
        assert "potluck serve" in result.stderr


def test_a_wrong_key_ends_it():
    error = {"code": "unauthorized", "message": "a key is wanted"}
    with Loopback(lambda exchange: exchange.send(401, {"error": error})) as server:
        result = status(server.url)
    assert result.exit_code == 1
    assert "POTLUCK_API_KEY" in result.stderr


def test_an_interval_of_nothing_is_refused():
    assert status("http://127.0.0.1:9", "--interval", "0").exit_code == 2


def test_a_watch_goes_on_through_trouble_and_keeps_what_it_knew():
    answers = [
        GatewayUnreachable("gone", "u"),
        read_health(health(node("a"))),
        AnswerTimeout("silent"),
        KeyRefused("no"),
    ]

    def look():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = Watch(look, "u")
    seen = []
    for _ in range(3):
        watch.look()
        seen.append((watch.health is not None, watch.trouble))
    assert seen == [(False, "gone"), (True, None), (True, "silent")]
    with pytest.raises(KeyRefused):
        watch.look()


def test_live_through_a_restart_and_left_by_ctrl_c():
    busy = threading.Event()

    def respond(exchange: Exchange):
        exchange.send(200, health(node("pixel-3", in_flight=4 if busy.is_set() else 0)))

    with Loopback(respond) as server, Terminal(server.url, "status", "-i", "0.1") as terminal:
        terminal.wait_for("░░░ 0/4")
        busy.set()
        terminal.wait_for("███ 4/4")
        server.stop()
        terminal.wait_for("not reachable, retrying")
        terminal.wait_for("pixel-3")  # what was known last stays
        with Loopback(respond, port=server.port):
            terminal.wait_for("  ok  ")
            terminal.type(CTRL_C)
            assert terminal.end() == 0
    assert "Traceback" not in terminal.seen
    assert terminal.raw.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_live_before_the_gateway_starts():
    with serve() as server:
        url, port = server.url, server.port
    with Terminal(url, "status", "-i", "0.1") as terminal:
        terminal.wait_for("not reachable, retrying")
        with Loopback(lambda exchange: exchange.send(200, health(node("pixel-3"))), port=port):
            terminal.wait_for("pixel-3")
            terminal.type(CTRL_C)
            assert terminal.end() == 0
