"""The sockets by which a node is asked and speaks: the shared port of discovery, and one of its own.

The shared port is one that every node of a machine binds: what is broadcast reaches them all, but a plain datagram only
one, so each has a port of its own besides, which mDNS tells. A node that listens everywhere binds everywhere; one that
listens at a single address binds that one and, only to hear, the broadcast addresses of its network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transport.beacons import Reach
from transport.datagrams import DatagramSocket, Deliver, close_all
from transport.interfaces import ANY_V4, ANY_V6, LIMITED_BROADCAST, Interface

__all__ = ["NodePort"]


class NodePort:
    def __init__(self, host: str, port: int, deliver: Deliver, reach: Reach) -> None:
        """`host` is what the node's server is bound to, in figures. Opens nothing yet."""
        self._host, self._port, self._deliver, self._reach = host, port, deliver, reach
        self._sockets: dict[tuple[str, int], DatagramSocket] = {}
        self._own: dict[bool, DatagramSocket] = {}  # by whether it speaks IPv6

    @property
    def own_port(self) -> int | None:
        """That reaches this node and no other of the machine; None where none could be had."""
        own = self._own.get(False) or self._own.get(True)
        return own.port if own is not None else None

    def refresh(self, found: Sequence[Interface]) -> OSError | None:
        """Open what is missing and close what is of no use any more; the last error where something is missing."""
        wanted = self._wanted(found)
        for host in [host for host, _ in self._sockets if host not in wanted]:
            self._sockets.pop((host, self._port)).close()
        failure: OSError | None = None
        for host, hears_only in wanted.items():
            failure = self._open(host, hears_only) or failure
        return failure

    def send(self, datagram: bytes, host: str, port: int) -> None:
        """From the shared port, which firewalls may know; else from its own."""
        is_v6 = ":" in host
        shared = self._speaking(is_v6)
        speaker = shared or self._own.get(is_v6)
        if speaker is not None:
            speaker.send(datagram, host, port)

    def close(self) -> None:
        close_all([*self._sockets.values(), *self._own.values()])
        self._sockets.clear()
        self._own.clear()

    def _wanted(self, found: Sequence[Interface]) -> dict[str, bool]:
        """The hosts to bind at the shared port, and whether each is one to hear only. Single addresses first."""
        if self._host == ANY_V6:
            return {ANY_V4: False, ANY_V6: False}
        if self._host == ANY_V4:
            return {ANY_V4: False}
        heard = dict.fromkeys((one.broadcast for one in found if one.broadcast), True)
        if any(not one.is_loopback and not one.is_v6 for one in found):
            heard[LIMITED_BROADCAST] = True
        return {self._host: False, **heard}

    def _speaking(self, is_v6: bool) -> DatagramSocket | None:
        host = self._host if self._host not in (ANY_V4, ANY_V6) else ANY_V6 if is_v6 else ANY_V4
        return self._sockets.get((host, self._port)) if (":" in host) == is_v6 else None

    def _open(self, host: str, hears_only: bool) -> OSError | None:
        key = (host, self._port)
        is_v6 = ":" in host
        try:
            if not hears_only and is_v6 not in self._own:
                self._own[is_v6] = self._reach.open_socket(host, 0, self._deliver)
            if key not in self._sockets:
                voice = self._speaking(is_v6) or self._own.get(is_v6) if hears_only else None
                self._sockets[key] = self._reach.open_socket(host, self._port, _voiced(self._deliver, voice))
        except OSError as error:
            return None if host == ANY_V6 and self._host == ANY_V6 else error
        return None


def _voiced(deliver: Deliver, voice: DatagramSocket | None) -> Deliver:
    """A socket that is bound to a broadcast address cannot speak: who hears by it answers by `voice`."""
    if voice is None:
        return deliver
    return lambda datagram, source: deliver(datagram, replace(source, heard_by=voice))
