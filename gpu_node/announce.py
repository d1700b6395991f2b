"""Makes the node known: answers probes at once, announces itself every few seconds, says goodbye, and stands in mDNS.

Invariants: nothing here ever ends the node, a port that cannot be had is one warning and tried again; an answer goes to
the probe's source alone, within a rate, and to an open one it is never much longer than what was asked. Must not know
the relay itself: it is told its address, and asks a function how the node stands.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_node.announcement import (
    OPEN_ANSWER_FACTOR,
    Occasion,
    RelayPlace,
    Speaker,
    Standing,
    addresses_for,
    addresses_on,
    may_answer,
)
from gpu_node.identity import Identity
from gpu_node.mdns import MdnsRecord, MdnsRegistration, joined_models, service_label
from transport.allowances import Allowances, Rate
from transport.beacons import DISCOVERY_PORT, Reach, Times
from transport.datagrams import Source
from transport.interfaces import Interface
from transport.node_port import NodePort
from wire.beacon import DATAGRAM_MOST, SKEW_MS, Address, Announcement, Probe, Replays, unpack_beacon
from wire.errors import RemoteError

log = logging.getLogger("gpu_node")

# A client that looks for nodes asks eight times in its first second, on this host over two addresses each time; there
# may be several on one host.
EACH_SOURCE = Rate(per_second=32, burst=96)
ALL_SOURCES = Rate(per_second=400, burst=800)
FIRST_PAUSES_SECONDS = (0.3, 1.0)  # the first announcement may be lost
PAUSE_SECONDS = 5.0
JITTER = 0.2  # of a pause, taken off, so that nodes that start together do not speak together
FAREWELLS, FAREWELL_PAUSE_SECONDS = 3, 0.02  # with every fifth datagram lost, one in 125 nodes goes unheard
STANDING_SECONDS = 1.0  # a look at the models reads the disk
# So few answers at once no network and no receiver's buffer minds; more are spread over a time that grows with them.
NODES_AT_ONCE = 16
SECONDS_A_NODE, LONGEST_SPREAD_SECONDS = 0.001, 0.2
NEIGHBOUR_SECONDS, NEIGHBOURS_REMEMBERED = 4 * PAUSE_SECONDS, 1024
MOST_PENDING = 64


def announce_pause(sent: int, draw: float) -> float:
    """Seconds until the next announcement when `sent` (1 or more) have gone out. `draw` is from 0 to 1. Pure."""
    whole = FIRST_PAUSES_SECONDS[sent - 1] if sent <= len(FIRST_PAUSES_SECONDS) else PAUSE_SECONDS
    return whole * (1.0 - JITTER * draw)


def answer_pause(neighbours: int, draw: float) -> float:
    """How long to wait with an answer where so many other nodes answer too: not at all among few. Pure."""
    if neighbours < NODES_AT_ONCE:
        return 0.0
    return draw * min(neighbours * SECONDS_A_NODE, LONGEST_SPREAD_SECONDS)


class Neighbours:
    """How many other nodes were heard lately."""

    def __init__(self) -> None:
        self._heard: OrderedDict[bytes, float] = OrderedDict()

    def hear(self, node_id: bytes, now: float) -> None:
        self._heard[node_id] = now
        self._heard.move_to_end(node_id)
        if len(self._heard) > NEIGHBOURS_REMEMBERED:
            self._heard.popitem(last=False)

    def count(self, now: float) -> int:
        while self._heard and next(iter(self._heard.values())) < now - NEIGHBOUR_SECONDS:
            self._heard.popitem(last=False)
        return len(self._heard)


@dataclass(frozen=True, slots=True)
class AnnounceOptions:
    """`port`: UDP. `mdns` is never used where the relay listens on loopback alone."""

    port: int = DISCOVERY_PORT
    mdns: bool = True
    times: Times = field(default_factory=Times)
    reach: Reach = field(default_factory=Reach)
    draw: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class _Asked:
    """A probe that gets an answer."""

    nonce: bytes
    source: Source
    size_bytes: int
    signed: bool


class Announcer:
    """`start` it when the relay listens, `stop` it when it does not any more. Neither raises."""

    def __init__(
        self,
        identity: Identity,
        place: RelayPlace,
        standing: Callable[[], Standing],
        token: str | None = None,
        options: AnnounceOptions | None = None,
    ) -> None:
        """`place` is what the relay's socket is bound to; with a `token` nothing unsigned is answered or sent."""
        self._options = options or AnnounceOptions()
        self._place, self._standing_now, self._token = place, standing, token or None
        self._speaker, self._identity = Speaker(identity, self._token, place.tls), identity
        self._times = self._options.times
        self._serials = itertools.count(1)
        self._port = NodePort(place.host, self._options.port, self._hear, self._options.reach)
        self._interfaces: tuple[Interface, ...] = ()
        self._standing, self._standing_at = Standing(), float("-inf")
        self._allowances = Allowances(EACH_SOURCE, ALL_SOURCES)
        self._replays, self._neighbours = Replays(), Neighbours()
        self._mdns = MdnsRegistration() if self._options.mdns and not place.is_loopback else None
        self._pending: set[asyncio.TimerHandle] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._told_of_clocks = self._told_of_port = False

    async def start(self) -> None:
        self._look_around()
        self._loops.append(asyncio.create_task(self._announce_on(), name="announcements"))
        if self._mdns is not None:
            self._loops.append(asyncio.create_task(self._register_on(self._mdns), name="mDNS"))

    async def stop(self) -> None:
        """Says goodbye, which takes a moment."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        started = bool(self._loops)
        self._loops.clear()
        for handle in self._pending:
            handle.cancel()
        self._pending.clear()
        if started:
            await self._say_goodbye()
        self._port.close()
        if self._mdns is not None:
            await self._mdns.close()

    async def _say_goodbye(self) -> None:
        try:
            for number in range(FAREWELLS):
                if number:
                    await self._times.sleep(FAREWELL_PAUSE_SECONDS)
                self._announce(leaving=True)
        except Exception:  # whoever stops the node has more to do after this
            log.exception("a farewell failed")

    def _look_around(self) -> None:
        """Interfaces come and go, and a port that was taken may be free now."""
        self._interfaces = tuple(one for one in self._options.reach.interfaces() if self._place.hears_on(one))
        error = self._port.refresh(self._interfaces)
        if error is not None and not self._told_of_port:
            self._told_of_port = True
            log.warning("UDP port %d cannot be had (%s): this node may not be found", self._options.port, error)

    async def _announce_on(self) -> None:
        for sent in itertools.count(1):
            try:
                self._look_around()
                self._announce()
            except Exception:
                log.exception("an announcement failed")
            await self._times.sleep(announce_pause(sent, self._options.draw()))

    async def _register_on(self, mdns: MdnsRegistration) -> None:
        while True:
            try:
                await mdns.update(self._mdns_record())
            except Exception:  # top of the task
                log.exception("mDNS is not told how the node stands")
            await self._times.sleep(PAUSE_SECONDS)

    def _mdns_record(self) -> MdnsRecord:
        hosts = [one.address for one in self._interfaces if not one.is_loopback and not one.is_link_local]
        texts = {
            "id": self._identity.node_id.hex(),
            "incarnation": str(self._identity.incarnation),
            "udp": str(self._port.own_port or self._options.port),
            "token": str(int(self._token is not None)),
            "tls": str(int(self._place.tls)),
            "models": joined_models(self._stand().models),
        }
        label = service_label(self._identity.name, self._identity.node_id)
        return MdnsRecord(label, self._place.port, tuple(dict.fromkeys(hosts)), tuple(texts.items()))

    def _announce(self, leaving: bool = False) -> None:
        for one in self._interfaces:
            addresses = addresses_on(self._place, one, self._interfaces, self._options.reach.route)
            if one.broadcast is not None and addresses:
                occasion = self._occasion(addresses, leaving=leaving)
                self._port.send(self._speaker.compose(self._stand(), occasion), one.broadcast, self._options.port)

    def _occasion(self, addresses: tuple[Address, ...], answers: bytes = b"", leaving: bool = False) -> Occasion:
        return Occasion(next(self._serials), int(self._times.wall() * 1000), addresses, answers, leaving)

    def _stand(self) -> Standing:
        now = self._times.monotonic()
        if now - self._standing_at >= STANDING_SECONDS:
            self._standing, self._standing_at = self._standing_now(), now
        return self._standing

    def _hear(self, datagram: bytes, source: Source) -> None:
        now = self._times.monotonic()
        if not self._allowances.take(source.host, now):
            return
        try:
            beacon, signed = unpack_beacon(datagram, self._token)
        except RemoteError:
            return
        if not self._allowances.take_together(now):
            return
        if not self._replays.is_news(beacon, int(self._times.wall() * 1000)):
            self._tell_of_clocks(beacon, source, signed)
        elif isinstance(beacon, Announcement):
            if beacon.node_id != self._identity.node_id:
                self._neighbours.hear(beacon.node_id, now)
        elif may_answer(self._place, source.host, signed, self._interfaces):
            asked = _Asked(beacon.nonce, source, len(datagram), signed)
            self._answer_soon(asked, answer_pause(self._neighbours.count(now), self._options.draw()))

    def _answer_soon(self, asked: _Asked, pause: float) -> None:
        if not pause:
            self._answer(asked)
        elif len(self._pending) < MOST_PENDING:
            loop = asyncio.get_running_loop()

            def answer() -> None:
                self._pending.discard(handle)
                self._answer(asked)

            handle = loop.call_later(pause, answer)
            self._pending.add(handle)

    def _answer(self, asked: _Asked) -> None:
        addresses = addresses_for(self._place, asked.source.host, self._interfaces, self._options.reach.route)
        if addresses:
            # Of an unsigned answer nobody believes more than the address that it comes from.
            occasion = self._occasion(addresses if asked.signed else addresses[:1], asked.nonce)
            most_bytes = DATAGRAM_MOST if asked.signed else OPEN_ANSWER_FACTOR * asked.size_bytes
            asked.source.answer(self._speaker.compose(self._stand(), occasion, most_bytes))

    def _tell_of_clocks(self, beacon: Probe | Announcement, source: Source, signed: bool) -> None:
        """The one mistake that otherwise nobody finds: a probe that is rightly signed and not believed."""
        apart = abs(self._times.wall() * 1000 - beacon.sent_ms)
        if signed and isinstance(beacon, Probe) and apart > SKEW_MS and not self._told_of_clocks:
            self._told_of_clocks = True
            log.warning("%s looks for nodes; its clock and ours are %d s apart: set them", source.host, apart / 1000)
