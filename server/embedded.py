"""The embedded node: a GPU node that the gateway runs itself, so that an empty fleet still answers.

Started as a child on loopback where nothing else is listed, restarted with growing pauses when it dies, stopped with
the gateway and never left behind. Once it runs it stays, as the last resort of a fleet that grew. It is asked over the
relay, and takes a random key there and over HTTP that nobody but the gateway knows. Knows the child's command line and
its one announcement, not its inside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from server.clock import Clock
from server.errors import NodeError
from server.nodes import Node, NodeId, NodeSpec, NodeStatus, ProbeReport
from server.registry import NodeListed, NodeUnlisted, Registry

EMBEDDED_ID = NodeId("local")
KEY_NAME = "POTLUCK_EMBEDDED_KEY"  # a name in the mapping of secrets, never in anybody's environment
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a child that ran this long is no crash loop
FAILURES_TO_STOP_WAITING = 3  # callers wait for a child that starts, not for one that cannot
MAX_LINE_BYTES = 64 * 1024
PROBE_SECONDS = 2.0
LOOK_SECONDS = 0.25
# Meant for a node that listens to a network; with the child the gateway alone speaks, on this machine.
NOT_FOR_THE_CHILD = ("POTLUCK_NODE_TOKEN", "POTLUCK_NODE_TLS_CERTIFICATE", "POTLUCK_NODE_TLS_KEY")

Mode = Literal["auto", "on", "off"]
Probe = Callable[[NodeSpec, float], Awaitable[ProbeReport]]
log = logging.getLogger(__name__)


def has_engine() -> bool:
    """Is everything installed that the child needs? Looks without importing: torch would cost us its memory."""
    return all(find_spec(name) is not None for name in ("torch", "transformers", "gpu_node"))


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """`environ` is what the child starts from; `command` the words before the flags. `devices` is for it to read."""

    mode: Mode = "auto"
    model: str = "default"
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: tuple[str, ...] = (sys.executable, "-m", "gpu_node")
    has_engine: Callable[[], bool] = has_engine
    stop_seconds: float = 10.0  # how long it may take to end before it is killed
    devices: str = ""

    def arguments(self) -> list[str]:
        place = ("--host", "127.0.0.1", "--port", "0", "--relay-port", "0")
        manners = ("--keep-main", "--exit-with-parent", "--announce-port")
        split = ("--devices", self.devices) if self.devices else ()
        return [*self.command, "--model", self.model, *split, *place, *manners]


@dataclass(frozen=True, slots=True)
class Announcement:
    """Where the child listens: its HTTP API, and the relay, which one that was told to serve HTTP only has not."""

    host: str
    port: int
    relay_port: int | None = None


def is_wanted(mode: Mode, nodes: Iterable[Node]) -> bool:
    """Should the child be started? Pure."""
    if mode == "auto":
        return not any(_may_serve(node) for node in nodes)
    return mode == "on"


def next_pause(previous: float, ran_seconds: float) -> float:
    """How long to wait before the next start; `previous` is 0 before the first death. Pure."""
    if previous == 0 or ran_seconds >= STEADY_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(previous * 2, LONGEST_PAUSE_SECONDS)


def read_announcement(line: bytes) -> Announcement | None:
    """What a line of the child's output says, if it says where the child listens. Pure."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("event") != "listening":
        return None
    host, port, relay_port = record.get("host"), record.get("port"), record.get("relay_port")
    if not isinstance(host, str) or type(port) is not int:
        return None
    return Announcement(host, port, relay_port if type(relay_port) is int else None)


def _may_serve(node: Node) -> bool:
    led_out = node.status in (NodeStatus.DISABLED, NodeStatus.DRAINING)
    return node.spec.origin != "embedded" and not led_out


class EmbeddedNode:
    """Run `run` as a task: it decides, starts, restarts and, when cancelled, stops the child."""

    def __init__(
        self,
        registry: Registry,
        secret_keys: MutableMapping[str, str],
        options: EmbeddedOptions,
        probe: Probe,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry
        self._secrets = secret_keys
        self._options = options
        self._probe = probe
        self._clock = clock or Clock()
        self._news = asyncio.Event()
        self._runs = False
        self._served = False
        self._failures = 0  # in a row, without having served
        self._last_end = ""

    @property
    def starting(self) -> bool:
        """Is it worth waiting for? True from the decision to start until the node is ready, unless it keeps failing."""
        if not self._runs or self._failures >= FAILURES_TO_STOP_WAITING:
            return False
        node = self._registry.node(EMBEDDED_ID)
        return node is None or node.status in (NodeStatus.UNKNOWN, NodeStatus.DRAINING)

    @property
    def reason(self) -> str | None:
        """Why it does not serve, and what to do about it; None where it serves or is starting."""
        if self._runs:
            if self._failures < FAILURES_TO_STOP_WAITING:
                return None
            return (
                f"the embedded node does not start ({self._last_end}); its own messages stand in the gateway's output"
            )
        if self._options.mode == "off":
            return (
                "the embedded node is switched off: bring phones in (potluck phones invite),"
                " or set POTLUCK_EMBEDDED_NODE=auto"
            )
        if not self._options.has_engine():
            return (
                "the embedded node needs torch, which is not installed: bring phones in (potluck phones invite),"
                " or install it with: pip install 'potluck-llm[gpu]' (in a clone: pip install '.[gpu]')"
            )
        return None

    async def run(self) -> None:
        """Follow the fleet until cancelled; the child has ended when this returns."""
        self._registry.listen(lambda _before, _after: self._news.set())
        while not is_wanted(self._options.mode, self._registry.fleet.nodes.values()):
            self._news.clear()
            await self._news.wait()
        if not self._options.has_engine():
            log.warning("%s", self.reason)
            return
        self._runs = True
        try:
            await self._keep_running()
        finally:
            self._runs = False

    async def _keep_running(self) -> None:
        pause = 0.0
        while True:
            started = self._clock.monotonic()
            self._served = False
            await self._run_once()
            self._failures = 0 if self._served else self._failures + 1
            pause = next_pause(pause, self._clock.monotonic() - started)
            log.warning("the embedded node has ended (%s); it is started again in %.1f s", self._last_end, pause)
            await self._clock.sleep(pause)

    async def _run_once(self) -> None:
        """Start the child, list it once it has its model, and wait for its end."""
        key = secrets.token_urlsafe(32)
        try:
            child = await asyncio.create_subprocess_exec(
                *self._options.arguments(),
                env=self._environment(key),
                stdin=asyncio.subprocess.PIPE,  # never written to: it closes when we die, however we die
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the gateway, which lets running answers end
                limit=MAX_LINE_BYTES,
            )
        except OSError as problem:
            self._last_end = f"cannot be started: {problem.strerror or problem}"
            return
        log.info("the embedded node starts with model %s (process %d)", self._options.model, child.pid)
        self._secrets[KEY_NAME] = key
        listing: asyncio.Task[None] | None = None
        try:
            found = await _read_announcement(child)
            if found is not None:
                listing = asyncio.create_task(self._list_when_loaded(_spec(found)))
            await _drain_output(child)
            self._last_end = _end_of(await child.wait())
        finally:
            if listing is not None:
                listing.cancel()
                await asyncio.gather(listing, return_exceptions=True)
            self._registry.emit(NodeUnlisted(EMBEDDED_ID, self._clock.wall()))
            await _stop(child, self._options.stop_seconds)

    async def _list_when_loaded(self, spec: NodeSpec) -> None:
        """The child listens before its model is fetched and loaded; requests are better off waiting here meanwhile."""
        while True:
            try:
                report = await self._probe(spec, PROBE_SECONDS)
            except NodeError as problem:
                log.debug("the embedded node does not answer yet: %s", problem.message)
            else:
                if report.resident:
                    break
            await self._clock.sleep(LOOK_SECONDS)
        self._served = True
        self._failures = 0
        self._registry.emit(NodeListed(spec, self._clock.wall()))

    def _environment(self, key: str) -> dict[str, str]:
        """The gateway's own keys stay with the gateway; and the child finds our packages wherever it is started."""
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [self._options.environ.get("PYTHONPATH")])]
        passed = {name: value for name, value in self._options.environ.items() if name not in NOT_FOR_THE_CHILD}
        own = {"POTLUCK_API_KEYS": f"gateway:{key}", "VRM_API_TOKEN": key, "PYTHONPATH": ":".join(paths)}
        return {**passed, **own}


def _spec(found: Announcement) -> NodeSpec:
    return NodeSpec(
        id=EMBEDDED_ID,
        name=str(EMBEDDED_ID),
        kind="ollama" if found.relay_port is None else "relay",
        host=found.host,
        port=found.port if found.relay_port is None else found.relay_port,
        api_key_env=KEY_NAME,
        origin="embedded",
        last_resort=True,
    )


async def _lines(child: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
    """The lines of the child's output until it closes it; one beyond the limit is dropped."""
    assert child.stdout is not None
    while True:
        try:
            line = await child.stdout.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


async def _read_announcement(child: asyncio.subprocess.Process) -> Announcement | None:
    """Where the child listens; None when it ends without saying so."""
    async for line in _lines(child):
        found = read_announcement(line)
        if found is not None:
            return found
        log.info("embedded node: %s", line.decode("utf-8", "replace").rstrip())
    return None


async def _drain_output(child: asyncio.subprocess.Process) -> None:
    """Read on, so that the child never waits for us to."""
    async for line in _lines(child):
        log.info("embedded node: %s", line.decode("utf-8", "replace").rstrip())


def _end_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


async def _stop(child: asyncio.subprocess.Process, patience_seconds: float) -> None:
    """End the child: asked first, killed when it does not listen. Returns when it is gone."""
    if child.returncode is not None:
        return
    child.terminate()
    # Not asyncio.timeout: in a task that was cancelled, as this one is, it tells no end of time in Python 3.11.2.
    gone = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait({gone}, timeout=patience_seconds)
    finally:
        if not gone.done():
            log.warning("the embedded node does not stop; it is killed")
            child.kill()
        await gone
