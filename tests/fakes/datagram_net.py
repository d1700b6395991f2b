"""Networks of datagrams without sockets: hosts with interfaces, segments with loss, and what a kernel does about both.

A datagram to a broadcast address reaches every socket of that network which is bound to it or to everything; one to a
single address reaches one socket only, the most exactly bound and of those the last. Delivery takes a turn of the loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from transport.beacons import Reach, Times
from transport.datagrams import Deliver, Source
from transport.interfaces import Interface

LOOPBACK = Interface("lo", "127.0.0.1", 8, 1)


@dataclass(eq=False)
class FakeSocket:
    owner: FakeHost
    host: str
    port: int
    deliver: Deliver

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    def send(self, datagram: bytes, host: str, port: int) -> None:
        if self in self.owner.sockets:
            self.owner.net.carry(self, datagram, host, port)

    def close(self) -> None:
        if self in self.owner.sockets:
            self.owner.sockets.remove(self)


@dataclass(eq=False)
class FakeHost:
    net: FakeNet
    interfaces: tuple[Interface, ...]
    sockets: list[FakeSocket] = field(default_factory=list)
    refused: set[tuple[str, int]] = field(default_factory=set)  # places that cannot be bound

    def open(self, host: str, port: int, deliver: Deliver) -> FakeSocket:
        if (host, port) in self.refused:
            raise OSError("address in use")
        self.net.ports += 1
        opened = FakeSocket(self, host, port or self.net.ports, deliver)
        self.sockets.append(opened)
        return opened

    def reach(self, *, network: bool = True, port: int = 8766) -> Reach:
        return Reach(network, port, lambda: self.interfaces, self.open, self.route)  # type: ignore[arg-type]

    def route(self, target: str) -> str | None:
        return self.interfaces[1].address if self.net.routed and len(self.interfaces) > 1 else None

    def address_on(self, target: str) -> str | None:
        """Its own address on the network of `target`."""
        return next((one.address for one in self.interfaces if one.reaches(target)), None)


@dataclass(eq=False)
class FakeNet:
    """`loses` says of each datagram between hosts whether it is lost; `routed`: are there routers between networks?"""

    loses: Callable[[], bool] = lambda: False
    routed: bool = False
    hosts: list[FakeHost] = field(default_factory=list)
    ports: int = 40_000
    carried: list[tuple[str, str, int, bytes]] = field(default_factory=list)  # from, to, port, datagram

    def host(self, *addresses: str) -> FakeHost:
        """`addresses` as "10.0.0.1/24", each on an interface of its own."""
        made = [ipaddress.ip_interface(each) for each in addresses]
        own = [Interface(f"e{i}", str(each.ip), each.network.prefixlen, i + 2) for i, each in enumerate(made)]
        self.hosts.append(FakeHost(self, (LOOPBACK, *own)))
        return self.hosts[-1]

    def carry(self, sender: FakeSocket, datagram: bytes, host: str, port: int) -> None:
        owner = sender.owner
        if ":" in host:
            return
        source = owner.address_on(host)
        source = source or owner.route(host)
        if sender.host not in ("0.0.0.0", source):
            return
        if source is None:
            return
        self.carried.append((source, host, port, datagram))
        for receiver in self._receivers(owner, host, port):
            if receiver.owner is owner or not self.loses():
                heard = Source(source, sender.port, receiver)  # type: ignore[arg-type]
                asyncio.get_running_loop().call_soon(self._deliver, receiver, datagram, heard)

    def _deliver(self, receiver: FakeSocket, datagram: bytes, source: Source) -> None:
        if receiver in receiver.owner.sockets:
            receiver.deliver(datagram, source)

    def _receivers(self, sender: FakeHost, host: str, port: int) -> list[FakeSocket]:
        is_broadcast = any(one.broadcast == host for one in sender.interfaces)
        near = [sender] if host.startswith("127.") else self.hosts
        found: list[FakeSocket] = []
        for each in near:
            if not is_broadcast and host not in [one.address for one in each.interfaces]:
                continue
            if is_broadcast and host not in [one.broadcast for one in each.interfaces]:
                continue
            bound = [one for one in each.sockets if one.port == port and one.host in ("0.0.0.0", host)]
            bound.sort(key=lambda one: one.host == host)
            found += bound if is_broadcast else bound[-1:]
        return found


def times_of(clock: object) -> Times:
    """The clock of `ManualClock.clock`, for discovery."""
    return Times(clock.monotonic, clock.wall, clock.sleep)  # type: ignore[attr-defined]
