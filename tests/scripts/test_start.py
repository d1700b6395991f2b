"""`scripts/run` for real: a simulated fleet, the lines to try, and nothing left when the server ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.ports import free_port
from tests.scripts.checkout import ROOT

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with an environment that is installed already: this one's packages are lent to it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("wire", "transport", "server", "gpu_node", "potluck", "scripts", "models", "tests/fakes"):
        ignore = shutil.ignore_patterns("__pycache__", "*.gguf", "*.safetensors")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("requirements.txt", "pyproject.toml", "phones.json", "tests/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    site = next(folder.glob(".venv/lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    remember = '. scripts/lib/environment.sh; wanted_text requirements.txt >"$(stamp_of requirements.txt)"'
    subprocess.run(["bash", "-c", remember], cwd=folder, check=True)
    return folder


class Running:
    """A started `scripts/run`; what it says is collected as it comes."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            ["bash", "scripts/run", *arguments],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def wait_until_ready(self) -> None:
        wait_for(lambda: "Potluck is ready" in self.said or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)  # ends when the last process that could say something has ended
        return code


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start_one(*arguments: str, **environment: str) -> Running:
        started.append(Running(checkout, *arguments, **environment))
        return started[-1]

    yield start_one
    for running in started:
        running.end(signal.SIGKILL)
        assert running.process.stdout is not None
        running.process.stdout.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ask(port: int) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("POST", "/ask", json.dumps({"prompt": "Hello"}), {"Content-Type": "application/json"})
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_simulated_fleet_answers_and_ends_with_the_server(
    start: Callable[..., Running], checkout: Path, number: int
) -> None:
    port = free_port()
    running = start("--demo-phones", "2", "--port", str(port))
    running.wait_until_ready()
    assert f"curl -X POST http://127.0.0.1:{port}/ask" in running.said
    first, last = map(int, re.findall(r"on ports (\d+) to (\d+)", running.said)[0])
    assert (last - first, _listens(first), _listens(last)) == (1, True, True)
    assert "demo-phone" in str(_ask(port)["node"])
    running.end(number)
    wait_for(lambda: not any(map(_listens, (port, first, last))))
    wait_for(lambda: not list(checkout.glob("potluck-demo-phones*")))


def test_a_taken_port_stops_the_start_before_anything_runs(start: Callable[..., Running]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        running = start("--port", str(port), POTLUCK_EMBEDDED_NODE="off")
        assert running.end(0) == 1
    assert f"scripts/run --port {port + 1}" in running.said


def test_other_flags_reach_uvicorn(start: Callable[..., Running]) -> None:
    running = start("--no-such-flag", POTLUCK_EMBEDDED_NODE="off")
    assert running.process.wait(PATIENCE_SECONDS) == 2
    assert "No such option" in running.said and "--no-such-flag" in running.said
