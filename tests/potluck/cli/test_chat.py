"""`potluck chat`: piped, and typed at a terminal."""

import json

from typer.testing import CliRunner

from potluck.cli import app
from tests.potluck.cli.terminal import CTRL_C, CTRL_D, PATIENCE_SECONDS, Terminal
from tests.potluck.loopback import DONE, Exchange, Loopback, health, tell

runner = CliRunner()


class Model:
    """Answers every message with its words in capitals; "forever" never ends, "break" breaks."""

    def __call__(self, exchange: Exchange) -> None:
        if exchange.asked.path == "/health":
            exchange.send(200, health())
        elif exchange.asked.path == "/v1/models":
            exchange.send(200, {"data": [{"id": "qwen2.5:0.5b"}, {"id": "smollm2:135m"}]})
        else:
            self._answer(exchange, exchange.asked.json["messages"][-1]["content"])

    def _answer(self, exchange: Exchange, said: str) -> None:
        if said == "refuse":
            exchange.send(503, {"error": {"code": "no_nodes", "message": "no node"}})
        elif said == "forever":
            exchange.begin()
            exchange.record({"token": "FOR"})
            exchange.wait_until_left()
        elif said == "break":
            exchange.begin()
            exchange.record({"token": "BRE"}, {"error": {"code": "nodes_failed", "message": "it broke"}})
            exchange.end()
        else:
            tell(*[f"{word} " for word in said.upper().split()])(exchange)


def talk(server, *lines, arguments=()):
    return runner.invoke(app, ["chat", *arguments], input="\n".join([*lines, ""]), env={"POTLUCK_URL": server.url})


def asked(server):
    return [request.json for request in server.requests if request.path == "/ask_stream"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_whole_messages_are_sent_so_that_conversations_come_home():
    with Loopback(Model()) as server:
        result = talk(server, "one", "two", arguments=["-m", "m", "-s", "Be brief."])
        system = {"role": "system", "content": "Be brief."}
        assert asked(server) == [
            {"messages": [system, user("one")], "model": "m", "cache": False},
            {"messages": [system, user("one"), assistant("ONE "), user("two")], "model": "m", "cache": False},
        ]
    assert (result.exit_code, result.stdout) == (0, "ONE \nTWO \n")


def test_orders():
    with Loopback(Model()) as server:
        lines = ["one", "/clear", "/system Be kind.", "/model m", "/model", "two", "/nonsense", "/bye", "never"]
        result = talk(server, *lines)
        assert [body["messages"] for body in asked(server)] == [
            [user("one")],
            [{"role": "system", "content": "Be kind."}, user("two")],
        ]
        assert asked(server)[1]["model"] == "m"
    assert result.stdout == "ONE \nTWO \n"
    for words in ("  smollm2:135m", "There is no /nonsense", "Now asking m."):
        assert words in result.stderr


def test_several_lines_are_one_message():
    with Loopback(Model()) as server:
        talk(server, '"""one', "", 'two"""')
        assert asked(server)[0]["messages"] == [user("one\n\ntwo")]


def test_failures_are_told_and_the_chat_goes_on():
    with Loopback(Model()) as server:
        result = talk(server, "refuse", "break", "on")
        assert asked(server)[2]["messages"] == [user("break"), assistant("BRE"), user("on")]
    assert (result.exit_code, result.stdout) == (1, "BRE\nON \n")
    assert "error: no node." in result.stderr
    assert "error: it broke." in result.stderr


def test_an_unfinished_message_is_not_lost_silently():
    with Loopback(Model()) as server:
        result = talk(server, '"""one')
        assert asked(server) == []
    assert result.exit_code == 1
    assert "was not sent" in result.stderr


def test_saving(tmp_path):
    path = tmp_path / "talk.json"
    (tmp_path / "strange.txt").write_text("precious")
    with Loopback(Model()) as server:
        orders = [f"/save {path}", "/save", f"/save {tmp_path}/strange.txt", f"/save {tmp_path}/no/where.txt"]
        result = talk(server, "one", *orders)
    assert json.loads(path.read_text())["messages"] == [user("one"), assistant("ONE ")]
    assert (tmp_path / "strange.txt").read_text() == "precious"
    for words in (f"Saved to {path}", "Give a file", "is not replaced", "Cannot write"):
        assert words in result.stderr


def test_a_gateway_that_is_not_there_is_told_before_the_first_question():
    with Loopback(Model()) as server:
        url = server.url
    result = runner.invoke(app, ["chat"], input="one\n", env={"POTLUCK_URL": url})
    assert result.exit_code == 1
    assert "potluck serve" in result.stderr


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves():
    with Loopback(Model()) as server, Terminal(server.url, "chat", "--verbose") as terminal:
        terminal.wait_for(">>> ")
        terminal.type("forever\n")
        terminal.wait_for("FOR")
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
        terminal.wait_for(">>> ")
        stopped = next(exchange for exchange in server.exchanges if exchange.asked.path == "/ask_stream")
        assert stopped.left.wait(PATIENCE_SECONDS)
        terminal.type('"""next\n')
        terminal.wait_for("... ")
        terminal.type('line"""\n')
        assert f"{DONE['tokens_per_second']} tokens/s" in terminal.wait_for(">>> ")
        assert asked(server)[1]["messages"] == [user("forever"), assistant("FOR"), user("next\nline")]
        terminal.type("/help\n")
        assert "/save FILE" in terminal.wait_for(">>> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.press_until(CTRL_C, "Ctrl-D or /bye leaves.")
        terminal.wait_for(">>> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.seen
