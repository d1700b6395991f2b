"""The embedded node: when it is started, listed, restarted and stopped. Real children that only play a GPU node."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server import embedded
from server.embedded import (
    EMBEDDED_ID,
    FAILURES_TO_STOP_WAITING,
    KEY_NAME,
    Announcement,
    EmbeddedNode,
    EmbeddedOptions,
    is_wanted,
    next_pause,
    read_announcement,
)
from server.errors import NodeUnreachable
from server.nodes import Node, NodeId, NodeSpec, NodeStatus, ProbeReport, ResidentModel
from server.registry import NodeListed, NodeProbed, NodeUnlisted, Registry
from tests.fakes.manual_clock import ManualClock

# Writes down how it was started, says where it listens, and lives until its parent closes its input.
GOOD = """
import json, os, sys
with open(os.environ["DIARY"], "a") as diary:
    keys = {name: os.environ.get(name) for name in ("POTLUCK_API_KEYS", "VRM_API_TOKEN", "POTLUCK_NODE_TOKEN")}
    diary.write(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "keys": keys}) + "\\n")
print("some chatter", flush=True)
where = {"host": "127.0.0.1", "port": 4242, "relay_port": 4243}
print(json.dumps({"event": "listening", **where, "model": "m"}), flush=True)
sys.stdin.read()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD + "\nimport time; time.sleep(60)"
DYING = "import sys; sys.exit(3)"
LOADED = ProbeReport("0.1.0", (), (ResidentModel("m"),))
LOADING = ProbeReport("0.1.0", ())


class Home:
    """An embedded node in a registry of its own, with a clock that stands still and a probe that says `report`."""

    def __init__(self, folder: Path, script: str = GOOD, **options: Any) -> None:
        self.diary = folder / "diary"
        self.clock = ManualClock()
        self.registry = Registry()
        self.keys: dict[str, str] = {}
        self.report: ProbeReport | None = LOADED
        self.probed: list[NodeSpec] = []
        environ = {"DIARY": str(self.diary), "PATH": os.environ["PATH"], "POTLUCK_API_KEYS": "alice:private"}
        environ |= {"VRM_API_TOKEN": "shared", "POTLUCK_NODE_TOKEN": "shared"}
        defaults: dict[str, Any] = {"command": (sys.executable, "-S", "-c", script), "has_engine": lambda: True}
        self.options = EmbeddedOptions(model="m", environ=environ, **(defaults | options))
        self.node = EmbeddedNode(self.registry, self.keys, self.options, self.probe, self.clock.clock)

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        self.probed.append(spec)
        if self.report is None:
            raise NodeUnreachable("not yet")
        return self.report

    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.diary.read_text().splitlines()] if self.diary.exists() else []

    def listed(self) -> Node | None:
        node = self.registry.node(EMBEDDED_ID)
        return None if node is None or node.status is NodeStatus.DRAINING else node

    def list_a_phone(self, enabled: bool = True) -> None:
        spec = NodeSpec(NodeId("phone"), "phone", "ollama", "10.0.0.1", 11434, enabled=enabled)
        self.registry.emit(NodeListed(spec, 0.0))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  # a child process has no event to wait for
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(home: Home) -> AsyncIterator[Home]:
    task = asyncio.create_task(home.node.run())
    await asyncio.sleep(0)
    try:
        yield home
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")  # an orphan that nobody has waited for yet is dead all the same
    return not (status.exists() and "State:\tZ" in status.read_text())


HTTP_ONLY = GOOD.replace(', "relay_port": 4243', "")


# -- decisions ---------------------------------------------------------------------------------------------------------


def node(**fields: Any) -> Node:
    status = fields.pop("status", NodeStatus.READY)
    return Node(NodeSpec(NodeId("x"), "x", "ollama", "10.0.0.1", 11434, **fields), status)


@pytest.mark.parametrize(
    ("mode", "nodes", "wanted"),
    [
        ("auto", [], True),
        ("auto", [node()], False),
        ("auto", [node(status=NodeStatus.SILENT)], False),
        ("auto", [node(status=NodeStatus.UNKNOWN)], False),
        ("auto", [node(status=NodeStatus.DISABLED)], True),
        ("auto", [node(status=NodeStatus.DRAINING)], True),
        ("auto", [node(origin="embedded")], True),
        ("on", [node()], True),
        ("off", [], False),
    ],
)
def test_when_it_is_wanted(mode: Any, nodes: list[Node], wanted: bool):
    assert is_wanted(mode, nodes) is wanted


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_run():
    pauses, pause = [], 0.0
    for _ in range(9):
        pause = next_pause(pause, 1.0)
        pauses.append(pause)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert next_pause(30.0, 61.0) == 0.5


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"event":"listening","host":"127.0.0.1","port":5,"model":"m"}\n', Announcement("127.0.0.1", 5)),
        (b'{"event":"listening","host":"127.0.0.1","port":5,"relay_port":6}\n', Announcement("127.0.0.1", 5, 6)),
        (b'{"event":"listening","host":"127.0.0.1","port":5,"relay_port":null}\n', Announcement("127.0.0.1", 5)),
        (b'{"event":"listening","host":"127.0.0.1"}\n', None),
        (b'{"event":"listening","host":"127.0.0.1","port":true}\n', None),
        (b'{"event":"loading"}\n', None),
        (b"chatter\n", None),
        (b"[]\n", None),
        (b"\xff\n", None),
    ],
)
def test_what_a_line_announces(line: bytes, found: Announcement | None):
    assert read_announcement(line) == found


# -- the child ---------------------------------------------------------------------------------------------------------


async def test_an_empty_fleet_gets_it_as_its_last_resort(tmp_path: Path):
    home = Home(tmp_path)
    async with running(home):
        assert home.node.starting and home.node.reason is None
        await home.until(home.listed)
        (start,) = home.starts()
        assert " ".join(start["argv"]) == (
            "--model m --host 127.0.0.1 --port 0 --relay-port 0 --keep-main --exit-with-parent --announce-port"
        )
        found = home.listed()
        assert found is not None
        spec = found.spec
        assert (spec.id, spec.name, spec.kind, spec.host, spec.port) == ("local", "local", "relay", "127.0.0.1", 4243)
        assert spec.last_resort and spec.origin == "embedded" and spec.api_key_env == KEY_NAME
        key = home.keys[KEY_NAME]
        own = {"POTLUCK_API_KEYS": f"gateway:{key}", "VRM_API_TOKEN": key, "POTLUCK_NODE_TOKEN": None}
        assert start["keys"] == own and len(key) > 30
        assert home.node.starting  # until the first probe
        home.registry.emit(NodeProbed(EMBEDDED_ID, LOADED, 0.0))
        assert not home.node.starting and home.node.reason is None
    assert not alive(start["pid"])
    assert home.listed() is None


async def test_devices_are_handed_to_it(tmp_path: Path):
    home = Home(tmp_path, devices="cpu:2GiB,cpu:1GiB@0.5")
    async with running(home):
        await home.until(home.starts)
        assert "--model m --devices cpu:2GiB,cpu:1GiB@0.5 --host" in " ".join(home.starts()[0]["argv"])


async def test_it_is_listed_only_when_its_model_is_loaded(tmp_path: Path):
    home = Home(tmp_path)
    home.report = None
    async with running(home):
        await home.until(lambda: home.probed)
        home.report = LOADING
        for _ in range(5):
            await home.clock.advance(1.0)
        assert home.listed() is None and home.node.starting
        home.report = LOADED
        await home.clock.advance(1.0)
        assert home.listed() is not None


async def test_a_fleet_with_phones_does_without(tmp_path: Path):
    home = Home(tmp_path)
    home.list_a_phone()
    async with running(home):
        await home.clock.settle()
        assert not home.node.starting and home.node.reason is None and not home.starts()
        home.registry.emit(NodeUnlisted(NodeId("phone"), 0.0))
        await home.until(home.listed)


async def test_it_stays_when_phones_join(tmp_path: Path):
    home = Home(tmp_path)
    async with running(home):
        await home.until(home.listed)
        home.list_a_phone()
        await home.clock.advance(100.0)
        assert home.listed() is not None and len(home.starts()) == 1


async def test_a_listed_phone_that_is_disabled_does_not_count(tmp_path: Path):
    home = Home(tmp_path)
    home.list_a_phone(enabled=False)
    async with running(home):
        await home.until(home.listed)


async def test_always_on(tmp_path: Path):
    home = Home(tmp_path, mode="on")
    home.list_a_phone()
    async with running(home):
        await home.until(home.listed)


async def test_switched_off_it_says_what_to_do(tmp_path: Path):
    home = Home(tmp_path, mode="off")
    async with running(home):
        await home.clock.settle()
        assert not home.node.starting and not home.starts()
        assert home.node.reason is not None and "potluck phones invite" in home.node.reason
        assert "POTLUCK_EMBEDDED_NODE=auto" in home.node.reason


async def test_without_torch_it_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    home = Home(tmp_path, has_engine=lambda: False)
    async with running(home):
        await home.clock.settle()
        assert not home.node.starting and not home.starts()
        assert home.node.reason is not None
        assert "potluck phones invite" in home.node.reason and "pip install 'potluck-llm[gpu]'" in home.node.reason
    assert "torch" in caplog.text


async def test_one_that_dies_leaves_the_fleet_and_is_started_again_with_a_new_key(tmp_path: Path):
    home = Home(tmp_path)
    async with running(home):
        await home.until(home.listed)
        first, key = home.starts()[0]["pid"], home.keys[KEY_NAME]
        os.kill(first, signal.SIGKILL)
        await home.until(lambda: home.listed() is None)
        assert home.node.starting
        await home.until(lambda: home.clock.sleeping)
        assert len(home.starts()) == 1
        await home.clock.advance(0.5)
        await home.until(lambda: len(home.starts()) == 2 and home.listed())
        assert home.keys[KEY_NAME] != key and home.node.starting is True


async def test_one_that_cannot_start_is_not_waited_for_but_tried_on(tmp_path: Path):
    home = Home(tmp_path, DYING)
    async with running(home):
        assert home.node.starting and home.node.reason is None
        for failures in range(1, FAILURES_TO_STOP_WAITING + 1):
            await home.until(lambda: home.clock.sleeping)  # the only place where nothing moves until we do
            assert home.clock.sleeping[0] - home.clock.now == pytest.approx(0.5 * 2 ** (failures - 1))
            if failures < FAILURES_TO_STOP_WAITING:
                assert home.node.starting and home.node.reason is None
                await home.clock.advance(home.clock.sleeping[0] - home.clock.now)
        assert not home.node.starting
        assert home.node.reason is not None and "exit code 3" in home.node.reason


async def test_a_command_that_is_not_there_is_a_failure_too(tmp_path: Path):
    home = Home(tmp_path, command=(str(tmp_path / "nothing"),))
    async with running(home):
        await home.until(lambda: home.clock.sleeping)
        for _ in range(FAILURES_TO_STOP_WAITING):
            await home.clock.advance(30.0)
        assert home.node.reason is not None and "cannot be started" in home.node.reason


async def test_one_that_does_not_listen_to_the_end_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    home = Home(tmp_path, STUBBORN, stop_seconds=0.05)
    async with running(home):
        await home.until(home.listed)
        (start,) = home.starts()
    assert not alive(start["pid"]) and "killed" in caplog.text


async def test_a_child_whose_parent_is_killed_ends_too(tmp_path: Path):
    """The parent here is a process of its own that runs an embedded node and is then killed without warning."""
    diary = tmp_path / "diary"
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import asyncio, os, sys\n"
        "from server.embedded import EmbeddedNode, EmbeddedOptions\n"
        "from server.registry import Registry\n"
        f"command = (sys.executable, '-S', '-c', {GOOD!r})\n"
        "options = EmbeddedOptions('on', 'm', dict(os.environ), command, lambda: True)\n"
        "async def probe(spec, seconds): await asyncio.sleep(60)\n"
        "async def main(): await EmbeddedNode(Registry(), {}, options, probe).run()\n"
        "asyncio.run(main())\n"
    )
    environ = {**os.environ, "DIARY": str(diary), "PYTHONPATH": str(Path(embedded.__file__).parents[1])}
    process = await asyncio.create_subprocess_exec(sys.executable, str(parent), env=environ)
    async with asyncio.timeout(60):
        while not (diary.exists() and diary.read_text().endswith("\n")):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        pid = json.loads(diary.read_text())["pid"]
        process.kill()
        await process.wait()
        while alive(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_its_chatter_goes_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    home = Home(tmp_path)
    async with running(home):
        await home.until(home.listed)
    assert "some chatter" in caplog.text and home.keys[KEY_NAME] not in caplog.text


async def test_a_line_without_end_does_not_stop_the_reading(tmp_path: Path):
    home = Home(tmp_path, "print('x' * 300_000, flush=True)\n" + GOOD)
    async with running(home):
        await home.until(home.listed)


async def test_a_child_without_the_relay_is_asked_over_http(tmp_path: Path):
    async with running(Home(tmp_path, HTTP_ONLY)) as home:
        await home.until(home.listed)
        spec = home.probed[-1]
        assert (spec.kind, spec.port) == ("ollama", 4242)
