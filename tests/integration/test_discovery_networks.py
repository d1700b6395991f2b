"""Discovery between network namespaces: broadcast, mDNS, loss, routers, and interfaces that lead elsewhere.

Each program is its own process in its own namespace, with the sockets, routes and broadcasts of a real kernel.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.network_namespaces import Lab, LabError, LabHost, namespaces, stop_program, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")

TOKEN = {"VRM_API_TOKEN": "a token of the test"}
NO_MULTICAST = ("ip daddr 224.0.0.0/4", "ip6 daddr ff00::/8")
PATIENCE_SECONDS = 60.0


class Program:
    """A program in a namespace; its lines are read while they come."""

    def __init__(self, host: LabHost, *words: str) -> None:
        self._process = host.start([sys.executable, "-m", *words], TOKEN)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def line(self, seconds: float = PATIENCE_SECONDS) -> str | None:
        """The next line; None when the program ended. Raises `queue.Empty` when it says nothing."""
        return self._lines.get(timeout=seconds)

    def stop(self, *, kill: bool = False) -> None:
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        self._process.stdout.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with namespaces() as made:
        yield made


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in reversed(started):
        program.stop()


def _node(programs: list[Program], host: LabHost, *more: str, listens: str = "0.0.0.0") -> Program:
    program = _starting_node(programs, host, *more, listens=listens)
    assert program.line() == "ready"
    return program


def _starting_node(programs: list[Program], host: LabHost, *more: str, listens: str = "0.0.0.0") -> Program:
    program = Program(host, "tests.fakes.announcing_node", "--host", listens, *more)
    programs.append(program)
    return program


def _gateway(programs: list[Program], host: LabHost) -> Program:
    program = Program(host, "tests.fakes.discovering_gateway")
    programs.append(program)
    assert json.loads(program.line())["ready"]
    return program


def _discover(*asked: tuple[LabHost, str] | LabHost, seconds: str = "3") -> list[list[dict]]:
    """What `potluck discover` finds at these hosts, each asked with an address besides or without one; all at once."""
    started = []
    for each in asked:
        host, *places = each if isinstance(each, tuple) else (each,)
        command = host.command([sys.executable, "-m", "potluck", "discover", "--json", "-s", seconds, *places])
        environ, pipe = {**os.environ, **TOKEN}, subprocess.PIPE
        started.append(subprocess.Popen(command, env=environ, text=True, stdout=pipe, stderr=pipe))
    found = []
    for process in started:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == (0 if out else 1), err
        found.append([json.loads(line) for line in out.splitlines()])
    return found


def _addresses(found: list[dict]) -> list[str]:
    return [f"{one['addresses'][0]['host']}:{one['addresses'][0]['port']}" for one in found]


def test_by_broadcast_alone_everybody_finds_those_nodes_that_listen_there(lab: Lab, programs: list[Program]) -> None:
    here, there = lab.host("10.77.0.1/24"), lab.host("10.79.0.1/24", switch="two")
    server = lab.host("10.77.0.2/24")
    lab.plug(server, "10.79.0.2/24", "two")
    for host in (here, there, server):
        host.lose(0, *NO_MULTICAST)
    listening = {
        "everywhere": ("0.0.0.0", "8765"),
        "beside it": ("0.0.0.0", "8767"),
        "on one network": ("10.77.0.2", "8768"),
        "at home": ("127.0.0.1", "8769"),
    }
    started = [
        _starting_node(programs, server, "--name", name, "--port", port, listens=host)
        for name, (host, port) in listening.items()
    ]
    assert [node.line() for node in started] == ["ready"] * 4
    found = _discover(here, there, server, (here, "10.77.0.2"))
    at_one = {"everywhere": "10.77.0.2:8765", "beside it": "10.77.0.2:8767", "on one network": "10.77.0.2:8768"}
    at_two = {"everywhere": "10.79.0.2:8765", "beside it": "10.79.0.2:8767"}
    names = [{one["name"]: address for one, address in zip(each, _addresses(each), strict=True)} for each in found]
    assert names[0] == names[3] == at_one
    assert names[1] == at_two
    assert names[2].keys() == listening.keys() and names[2]["at home"] == "127.0.0.1:8769"
    one = found[0][0]
    assert (one["verified"], one["models"]) == (True, ["smollm2:135m", "qwen2.5:7b"])


def test_with_every_fifth_datagram_lost_it_is_found_all_the_same(lab: Lab, programs: list[Program]) -> None:
    client, server = lab.host("10.77.0.1/24"), lab.host("10.77.0.2/24")
    _node(programs, server)
    for host in (client, server):
        host.lose(20)
    command = ["-m", "bench.discovery", "--look", "--runs", "6"]
    looks = json.loads(stop_program(client.start([sys.executable, *command], TOKEN)))
    assert len(looks) == 6
    assert sorted(looks)[4] < 1000


def test_where_broadcast_is_lost_mdns_leads_the_gateway_to_the_node(lab: Lab, programs: list[Program]) -> None:
    client, server = lab.host("10.77.0.1/24"), lab.host("10.77.0.2/24")
    for host in (client, server):
        host.lose(0, "ip daddr 10.77.0.255", "ip daddr 255.255.255.255", "ip6 daddr ff02::1")
    _node(programs, server, "--mdns")
    gateway = _gateway(programs, client)
    assert _discover(client) == [[]]
    assert json.loads(gateway.line()) == {"name": "tower", "address": "10.77.0.2:8765", "status": "unknown"}


def test_the_gateway_hears_a_node_come_and_go(lab: Lab, programs: list[Program]) -> None:
    client, server = lab.host("10.77.0.1/24"), lab.host("10.77.0.2/24")
    gateway = _gateway(programs, client)
    node = _node(programs, server)
    assert json.loads(gateway.line())["status"] == "unknown"
    node.stop()
    assert json.loads(gateway.line())["status"] == "draining"


def test_behind_a_router_nobody_is_found_and_a_plain_address_works(lab: Lab, programs: list[Program]) -> None:
    client, server = lab.host("10.77.0.1/24", switch="one"), lab.host("10.78.0.2/24", switch="two")
    lab.router(("10.77.0.254/24", "one"), ("10.78.0.254/24", "two"))
    client.run("ip", "route", "add", "default", "via", "10.77.0.254")
    server.run("ip", "route", "add", "default", "via", "10.78.0.254")
    _node(programs, server)
    nobody, found = _discover(client, (client, "10.78.0.2"))
    assert (nobody, _addresses(found)) == ([], ["10.78.0.2:8765"])


def test_an_interface_that_leads_elsewhere_hides_nobody(lab: Lab, programs: list[Program]) -> None:
    """The default route and the first interface lead to another network; a host of containers looks like this."""
    client = lab.host("172.17.0.1/16", switch="containers")
    server = lab.host("10.77.0.2/24")
    lab.plug(client, "10.77.0.1/24", "one")
    lab.plug(server, "172.18.0.1/16", "others")
    client.run("ip", "route", "add", "default", "via", "172.17.0.9")
    server.run("ip", "route", "add", "default", "via", "172.18.0.9")
    _node(programs, server)
    (found,) = _discover(client)
    assert _addresses(found) == ["10.77.0.2:8765"]


def test_over_ipv6_alone_a_node_is_found_too(lab: Lab, programs: list[Program]) -> None:
    client, server = lab.host("fd77::1/64"), lab.host("fd77::2/64")
    _node(programs, server, listens="::")
    ((found,),) = _discover(client)
    assert "fd77::2" in [each["host"] for each in found["addresses"]]


def test_a_command_that_fails_is_told(lab: Lab) -> None:
    with pytest.raises(LabError, match="e99"):
        lab.host("10.77.0.1/24").run("ip", "link", "show", "e99")
