import socket
import sys

import pytest
from typer.testing import CliRunner

from potluck.cli import app
from potluck.cli.programs import check_place, server_arguments
from potluck.errors import Misuse, PotluckError
from tests.potluck.cli.terminal import run

NOWHERE = "http://127.0.0.1:9"


def test_the_server_is_one_process_on_the_fast_loop():
    arguments = server_arguments("127.0.0.1", 8000, ["--log-level", "warning"])
    assert arguments[:5] == ["server:app", "--host", "127.0.0.1", "--port", "8000"]
    assert arguments[-2:] == ["--log-level", "warning"]
    if sys.platform != "win32":
        assert arguments[5:9] == ["--loop", "uvloop", "--http", "httptools"]


@pytest.mark.parametrize("flag", ["--workers", "--workers=4", "--factory"])
def test_flags_that_would_break_the_gateway_are_refused(flag):
    with pytest.raises(Misuse, match="cannot be used"):
        server_arguments("127.0.0.1", 8000, [flag, "4"])


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "many"], ["--workers", "2"]])
def test_serve_refuses_what_cannot_work(arguments):
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_serve_explains_a_wrong_setting_in_a_sentence():
    done = run(NOWHERE, "serve", POTLUCK_QUEUE_LIMITT="5")
    assert done.returncode == 2
    assert "POTLUCK_QUEUE_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_taken_port_before_anything_is_started():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = run(NOWHERE, "serve", "--port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr and "--port" in done.stderr
    assert "Started server process" not in done.stderr


def test_a_place_is_looked_at_as_the_server_takes_it():
    check_place("127.0.0.1", 0)
    check_place("localhost", 0)
    with socket.socket() as other, pytest.raises(PotluckError, match=r"cannot listen on localhost port \d+"):
        other.bind(("127.0.0.1", 0))
        other.listen()
        check_place("localhost", other.getsockname()[1])
    with pytest.raises(PotluckError, match=r"192\.0\.2\.77 port 0"):
        check_place("192.0.2.77", 0)
    with pytest.raises(PotluckError, match=r"cannot listen on a+ port 0"):
        check_place("a" * 64, 0)


def test_another_program_on_every_ipv4_address_leaves_ipv6_free():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        check_place("::", other.getsockname()[1])


@pytest.mark.parametrize("flag", ["--ssl-certfile", "--uds"])
def test_serve_explains_files_that_are_not_there(flag, tmp_path):
    done = run(NOWHERE, "serve", "--port", "0", flag, str(tmp_path / "nobody" / "here"), POTLUCK_EMBEDDED_NODE="off")
    assert done.returncode == 1
    assert "error: the server cannot start: No such file or directory." in done.stderr and flag in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_passes_unknown_flags_to_uvicorn_which_judges_them():
    done = run(NOWHERE, "serve", "--port", "0", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


def test_serve_refuses_a_list_of_no_devices():
    done = run(NOWHERE, "serve", "--devices", "gpu")
    assert done.returncode == 2
    assert '--devices: "gpu" names no device' in " ".join(done.stderr.split())
    off = run(NOWHERE, "serve", "--devices", "cpu:1GiB", POTLUCK_EMBEDDED_NODE="off")
    assert off.returncode == 2 and "POTLUCK_EMBEDDED_NODE is off" in " ".join(off.stderr.split())


def test_node_passes_everything_to_the_gpu_node():
    done = run(NOWHERE, "node", "--help")
    assert done.returncode == 0
    assert "--model" in done.stdout
    wrong = run(NOWHERE, "node", "--port", "many")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
