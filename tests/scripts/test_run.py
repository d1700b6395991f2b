"""`scripts/run` before anything is started: its own flags, and the plan that it asks for."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.checkout import ROOT, Checkout, make_checkout

sys.path.insert(0, str(ROOT / "scripts" / "lib"))

import announcement
import demo_fleet
import start_plan


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def _plan(*arguments: str, **environment: str) -> start_plan.StartPlan:
    return start_plan.start_plan(arguments, environment, {})


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_installs_nothing(checkout: Checkout, flag: str) -> None:
    done = checkout.run("scripts/run", flag)
    assert done.returncode == 0
    assert "--demo-phones N" in done.stdout
    assert checkout.asked == []


@pytest.mark.parametrize(
    "words", [["--demo-phones", "many"], ["--demo-phones="], ["--demo-phones"], ["--demo-phones", "-3"]]
)
def test_a_number_that_is_none_is_refused_before_anything_is_installed(checkout: Checkout, words: list[str]) -> None:
    done = checkout.run("scripts/run", *words)
    assert done.returncode == 1
    assert "--demo-phones needs a number" in done.stderr
    assert checkout.asked == []


@pytest.mark.parametrize("number", ["201", "100000000000000000000"])
def test_too_many_phones_are_refused(checkout: Checkout, number: str) -> None:
    done = checkout.run("scripts/run", "--demo-phones", number)
    assert (done.returncode, "up to 200" in done.stderr) == (1, True)


def test_own_flags_after_those_of_uvicorn_are_refused(checkout: Checkout) -> None:
    done = checkout.run("scripts/run", "--port", "9000", "--demo-phones", "3")
    assert (done.returncode, "comes before" in done.stderr) == (1, True)


@pytest.mark.parametrize("words", [["--devices"], ["--devices="], ["--devices", ""]])
def test_a_list_of_no_devices_is_refused_before_anything_is_installed(checkout: Checkout, words: list[str]) -> None:
    done = checkout.run("scripts/run", *words)
    assert (done.returncode, checkout.asked) == (1, [])
    assert "--devices needs a list" in done.stderr
    assert "comes before" in checkout.run("scripts/run", "--port", "1", "--devices", "cpu:1GB").stderr


def test_devices_want_the_model_whatever_the_fleet(tmp_path: Path) -> None:
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "10.0.0.5"}]')
    listed = {"POTLUCK_PHONES_FILE": str(path), "POTLUCK_EMBEDDED_DEVICES": "cpu:2GiB,cpu:1GiB"}
    assert (_plan(**listed).wants_model, _plan(**listed).devices) == (True, "cpu:2GiB,cpu:1GiB")
    assert _plan(**listed, POTLUCK_EMBEDDED_NODE="off").wants_model is False
    assert start_plan.start_plan([], {}, {"embedded_devices": "cpu:1GiB"}).devices == "cpu:1GiB"


def test_a_list_that_is_none_is_told_before_the_start() -> None:
    assert '"gpu" names no device' in start_plan.problem_of("gpu")
    assert [start_plan.problem_of(text) for text in ("", "auto", "cpu:2GiB,cuda:0")] == ["", "", ""]


def test_the_plain_plan() -> None:
    plan = _plan()
    assert (plan.host, plan.port, plan.url) == ("127.0.0.1", "8000", "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        (["--port", "9001"], {}, "http://127.0.0.1:9001"),
        (["--port=9001", "--host=0.0.0.0"], {}, "http://127.0.0.1:9001"),
        ([], {"HOST": "::", "PORT": "81"}, "http://[::1]:81"),
        (["--host", "::1"], {"HOST": "0.0.0.0"}, "http://[::1]:8000"),
        ([], {"UVICORN_PORT": "82"}, "http://127.0.0.1:82"),
        ([], {"POTLUCK_HOST": "::1", "HOST": "0.0.0.0", "POTLUCK_PORT": "83", "PORT": "84"}, "http://[::1]:83"),
        (["--port", "1", "--port", "2"], {}, "http://127.0.0.1:2"),
        (["--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem"], {}, "https://127.0.0.1:8000"),
        (["--host", "gateway.local"], {}, "http://gateway.local:8000"),
        (["--port", "0"], {}, "-"),
        (["--uds", "gateway.sock"], {}, "-"),
        (["--fd", "3"], {}, "-"),
    ],
)
def test_the_address_told_is_the_one_given(arguments: list[str], environment: dict[str, str], url: str) -> None:
    assert _plan(*arguments, **environment).url == url


def test_the_settings_file_is_weaker_than_the_environment() -> None:
    file = {"PORT": 83, "HOST": "::1", "POTLUCK_EMBEDDED_NODE": "off"}
    plan = start_plan.start_plan([], {"PORT": "84"}, file)
    assert (plan.host, plan.port, plan.wants_model) == ("::1", "84", False)


@pytest.mark.parametrize(
    ("fleet", "mode", "wanted"),
    [
        ("[]", "auto", True),
        ('{"phones": []}', "auto", True),
        ('[{"host": "10.0.0.5"}]', "auto", False),
        ('[{"host": "10.0.0.5"}]', "on", True),
        ("[]", "off", False),
        ("[", "auto", False),
        (None, "auto", True),
    ],
)
def test_the_model_is_wanted_where_the_embedded_node_will_serve(
    tmp_path: Path, fleet: str | None, mode: str, wanted: bool
) -> None:
    path = tmp_path / "phones.json"
    if fleet is not None:
        path.write_text(fleet)
    assert _plan(POTLUCK_PHONES_FILE=str(path), POTLUCK_EMBEDDED_NODE=mode).wants_model is wanted


def test_a_taken_port_is_told_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert start_plan.main(["--port", str(port)]) == 1
    assert f"scripts/run --port {port + 1}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "error: 99999 is no port: the highest one is 65535\n"),
        (["--workers", "2"], "error: --workers cannot be used: the gateway is one process with one queue\n"),
        (
            ["--port", "0", "--workers=2"],
            "error: --workers cannot be used: the gateway is one process with one queue\n",
        ),
        (
            ["--port", "0", "--workers=2"],
            "error: --workers cannot be used: the gateway is one process with one queue\n",
        ),
        (["--factory"], "error: --factory cannot be used: the gateway is one process with one queue\n"),
    ],
)
def test_flags_that_cannot_work_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start_plan.main(arguments) == 1
    assert capsys.readouterr() == ("", sentence)


def test_another_file_of_settings_counts(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('port = 70001\nembedded_node = "off"\n')
    told = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lib" / "start_plan.py"],
        env={"POTLUCK_CONFIG": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (1, "error: 70001 is no port: the highest one is 65535\n")


def test_demo_ports_lie_in_a_row_beside_what_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        base = demo_fleet.free_base(3, first=port - 1)
    assert base > port


def test_the_announcement_has_lines_that_can_be_pasted() -> None:
    text = announcement.ready_text("http://127.0.0.1:9000", with_key=False)
    assert "curl -X POST http://127.0.0.1:9000/ask -H 'Content-Type: application/json' -d '{\"prompt\": " in text
    assert '.venv/bin/potluck ask --url http://127.0.0.1:9000 "' in text
    assert '.venv/bin/potluck ask "' in announcement.ready_text("http://127.0.0.1:8000", with_key=False)
    assert "Authorization" not in text
    assert "Authorization: Bearer" in announcement.ready_text("http://127.0.0.1:9000", with_key=True)


def test_the_announcement_ends_with_its_server() -> None:
    gone = 2**22 + 1  # above the largest process id of any system here
    assert announcement.main([str(gone), "http://127.0.0.1:1"]) == 0
