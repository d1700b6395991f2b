"""Hosts of this very machine: Linux network namespaces joined by virtual cables, with loss where it is wanted.

    async with or with: `with namespaces() as lab: a = lab.host("10.77.0.1/24"); a.start([...])`

Every `host` hangs at one switch (a bridge in a namespace of its own), whatever network its address belongs to; a
`router` joins two networks. Loss is nftables' `numgen`, since some kernels have no `netem`. Needs root, `ip` and `nft`;
`why_not` says what is missing. What a lab made, it unmakes, also after a failure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 30.0


class LabError(Exception):
    """A command of the lab failed; the message is its own."""


def _run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, input=text, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@cache
def why_not() -> str:
    """Why no namespaces can be made here; empty when they can."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {' and '.join(missing)} (packages iproute2, nftables)"
    name = f"plt{secrets.token_hex(4)}"
    try:
        _run("ip", "netns", "add", name)
    except LabError as error:
        return f"network namespaces cannot be made here: {error}"
    try:
        _run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        _run("ip", "-n", name, "link", "add", "b0", "type", "bridge")
        _run("ip", "netns", "exec", name, "nft", "-f", "-", text=_loss_rules(20, ()))
    except LabError as error:
        return f"this kernel cannot join network namespaces: {error}"
    finally:
        _run("ip", "netns", "del", name)
    return ""


def _loss_rules(percent: int, dropped: Sequence[str]) -> str:
    """`dropped` are further matches of nftables, as in "udp dport 5353"."""
    rules = [f"meta l4proto udp numgen random mod 100 < {percent} drop"] if percent else []
    lines = "\n".join([*rules, *(f"{match} drop" for match in dropped)])
    hook = "type filter hook input priority 0; policy accept;"
    return f"table inet lab {{\n chain heard {{\n {hook}\n iifname lo accept\n{lines}\n }}\n}}\n"


@dataclass(frozen=True, slots=True)
class LabHost:
    """One namespace. `address` is its first."""

    name: str
    address: str

    def command(self, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str) -> str:
        """Within the namespace. Raises LabError."""
        return _run(*self.command(words))

    def lose(self, percent: int = 0, *dropped: str) -> None:
        """Of the UDP datagrams that come in, so many in a hundred, and all that match one of `dropped`."""
        with contextlib.suppress(LabError):
            self.run("nft", "delete", "table", "inet", "lab")
        _run(*self.command(["nft", "-f", "-"]), text=_loss_rules(percent, dropped))

    def start(self, words: Sequence[str], environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A program of the project; the caller stops it (`stop_program`)."""
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(words), env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )


def stop_program(program: subprocess.Popen[str]) -> str:
    """Closes its input, which our programs take for the end, and returns what it still said."""
    try:
        said, _ = program.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        said, _ = program.communicate()
    return said


@dataclass(slots=True)
class Lab:
    prefix: str
    names: list[str] = field(default_factory=list)
    cables: int = 0

    def host(self, *addresses: str, switch: str = "one") -> LabHost:
        """`addresses` as "10.77.0.1/24", all on its one cable to `switch`."""
        name = self._space(f"h{len(self.names)}")
        self._plug(name, addresses, switch)
        return LabHost(name, addresses[0].partition("/")[0])

    def router(self, *sides: tuple[str, str]) -> LabHost:
        """`sides` are pairs of an address and the switch at which it has it."""
        name = self._space(f"r{len(self.names)}")
        for address, switch in sides:
            self._plug(name, (address,), switch)
        made = LabHost(name, sides[0][0].partition("/")[0])
        made.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        return made

    def _space(self, label: str) -> str:
        name = f"{self.prefix}{label}"
        _run("ip", "netns", "add", name)
        self.names.append(name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        # A link's own address waits seconds for somebody else who might have it.
        _run("ip", "netns", "exec", name, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
        return name

    def plug(self, host: LabHost, address: str, switch: str) -> None:
        """One more cable."""
        self._plug(host.name, (address,), switch)

    def _plug(self, name: str, addresses: Sequence[str], switch: str) -> None:
        bridge = f"{self.prefix}{switch}"
        if bridge not in self.names:
            self._space(switch)
            _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            _run("ip", "-n", bridge, "link", "set", "br0", "up")
        self.cables += 1
        own, theirs = f"e{self.cables}", f"p{self.cables}"
        _run("ip", "-n", name, "link", "add", own, "type", "veth", "peer", "name", theirs, "netns", bridge)
        _run("ip", "-n", bridge, "link", "set", theirs, "master", "br0", "up")
        for address in addresses:
            manner = ("nodad",) if ":" in address else ("brd", "+")  # else IPv6 takes seconds to trust its address
            _run("ip", "-n", name, "addr", "add", address, *manner, "dev", own)
        _run("ip", "-n", name, "link", "set", own, "up")


@contextlib.contextmanager
def namespaces() -> Iterator[Lab]:
    """Raises LabError where `why_not` says something."""
    lab = Lab(f"plt{secrets.token_hex(3)}")
    try:
        yield lab
    finally:
        for name in reversed(lab.names):
            with contextlib.suppress(LabError):
                _run("ip", "netns", "del", name)
