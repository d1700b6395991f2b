"""The guards of conftest.py: each kind of leak fails the test that left it, and only that one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEAKS = """
import asyncio, os, socket, subprocess, sys, threading
import pytest

kept = []

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(1000)))

async def test_unseen_error():
    async def fail():
        raise ValueError("nobody awaits me")
    asyncio.create_task(fail())
    await asyncio.sleep(0)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="left").start()

def test_socket():
    kept.append(socket.socket())

def test_socket_in_a_cycle():
    cycle = [socket.socket()]
    cycle.append(cycle)

def test_child():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_ended_child():
    kept.append(subprocess.Popen([sys.executable, "-c", ""]))

@pytest.fixture(scope="module", autouse=True)
def end_what_is_left():
    yield
    for each in kept:
        if isinstance(each, socket.socket):
            each.close()
        if isinstance(each, subprocess.Popen):
            each.communicate()
"""

CLEAN = """
import asyncio, os, socket, threading
import pytest

async def test_ended_task():
    task = asyncio.create_task(asyncio.sleep(1000))
    task.cancel()

async def test_thread_pool_of_the_loop():
    assert await asyncio.to_thread(lambda: 1) == 1

@pytest.fixture
async def server():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    yield server
    server.close()
    await server.wait_closed()

async def test_server(server):
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()

@pytest.fixture(scope="module")
def shared():
    with socket.socket() as held:
        thread = threading.Thread(target=(ended := threading.Event()).wait)
        thread.start()
        yield held
        ended.set()
        thread.join()

def test_what_a_wider_fixture_holds(shared):
    assert shared.fileno() > 0

@pytest.mark.parametrize("turn", [1, 2])
def test_environment(turn):
    assert "POTLUCK_LEFT" not in os.environ and "POTLUCK_FROM_THE_SHELL" not in os.environ
    os.environ["POTLUCK_LEFT"] = "1"
"""


def _run(folder: Path, text: str) -> str:
    guards, short = re.subn(
        r"^(\w*GRACE_SECONDS) = .*", r"\1 = 0.3", (ROOT / "tests/conftest.py").read_text(), flags=re.M
    )
    assert short == 2, "what is left here on purpose need not be waited for as long as on a busy machine"
    (folder / "conftest.py").write_text(guards)
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    environment = {"PATH": "", "POTLUCK_FROM_THE_SHELL": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


def test_each_kind_of_leak_fails_its_own_test(tmp_path: Path) -> None:
    told = dict(re.findall(r"^ERROR tests/test_it\.py::(\w+) - Failed: ([a-z ]+)", _run(tmp_path, LEAKS), re.M))
    assert told == {
        "test_task": "tasks left running",
        "test_unseen_error": "the event loop reported",
        "test_thread": "threads left running",
        "test_socket": "sockets left open",
        "test_socket_in_a_cycle": "sockets left open",
        "test_child": "child processes left",
        "test_ended_child": "child processes left",
    }


def test_what_is_ended_is_no_leak(tmp_path: Path) -> None:
    assert "6 passed" in _run(tmp_path, CLEAN)


@pytest.mark.parametrize("name", ["POTLUCK_FROM_THE_SHELL", "HOST", "PORT", "ENABLE_LRU_CACHE"])
def test_no_setting_of_the_shell_is_seen_here(name: str) -> None:
    assert name not in os.environ
