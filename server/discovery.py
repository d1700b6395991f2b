"""Looks for GPU nodes that nobody listed: probes, listens to announcements, reads mDNS, and tells the registry.

What to believe and what it means is decided in `found_nodes`, purely; here is the I/O. Without a token no datagram
leaves this machine, unless the owner says so. Invariants: only datagrams that were verified lead to an event, mDNS is
but a place to ask; nothing here ends the gateway. Must not know how a node is spoken to.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from server.clock import Clock
from server.found_nodes import NOT_TRUSTED, FoundNodes, Mode, Place, distrust, fleet_changes
from server.mdns_browser import MdnsBrowser
from server.nodes import NodeId
from server.registry import NodeListed, Registry
from transport.beacons import Prober, Reach, Times, next_probe_pause
from transport.found import Found

log = logging.getLogger(__name__)

FIRST_PROBES = 8  # within a second: enough for a network that loses every fifth datagram
PROBE_SECONDS = 10.0  # nodes tell of themselves every five; this is for those whose announcements do not get here
LOOK_SECONDS = 1.0
HINT_PROBES = 5
MOST_HINTS = 16  # followed at once
TOLD_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class DiscoveryOptions:
    """`mode` "auto" looks beyond this machine only with a token."""

    mode: Mode = "auto"
    token: str | None = field(default=None, repr=False)
    reach: Reach = field(default_factory=Reach)

    @property
    def looks_around(self) -> bool:
        return bool(self.token) or self.mode == "on"


class Discovery:
    """Run `run` as a task."""

    def __init__(
        self,
        registry: Registry,
        options: DiscoveryOptions,
        clock: Clock | None = None,
        browser: Callable[[Callable[[tuple[Place, ...]], None], int], MdnsBrowser] = MdnsBrowser,
    ) -> None:
        self._registry, self._options = registry, options
        self._clock = clock or Clock()
        self._reach = replace(options.reach, network=options.looks_around)
        times = Times(self._clock.monotonic, self._clock.wall, self._clock.sleep)
        self._prober = Prober(options.token, self._hear, self._reach, name="gateway", times=times)
        self._browser = browser(self._follow_hint, self._reach.port) if options.looks_around else None
        self._found = FoundNodes()
        self._news = asyncio.Event()
        self._hints: dict[tuple[Place, ...], asyncio.Task[None]] = {}
        self._told: OrderedDict[NodeId, str] = OrderedDict()

    async def run(self) -> None:
        """Look until cancelled."""
        if self._options.mode == "off":
            return
        try:
            self._prober.open()
        except OSError as error:
            log.warning("nodes cannot be looked for: %s", error)
            return
        if not self._options.token and self._options.mode == "on":
            log.warning("discovery trusts every node of this network that says it is one; POTLUCK_NODE_TOKEN would not")
        self._registry.listen(lambda _before, _after: self._news.set())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._probe_on())
                tasks.create_task(self._look_on())
                tasks.create_task(self._tell_on())
        finally:
            for task in self._hints.values():
                task.cancel()
            await asyncio.gather(*self._hints.values(), return_exceptions=True)
            self._prober.close()
            if self._browser is not None:
                await self._browser.close()

    async def _probe_on(self) -> None:
        sent = 0
        while True:
            self._prober.probe(self._found.silent(self._clock.monotonic()))
            sent += 1
            await self._clock.sleep(next_probe_pause(sent) if sent < FIRST_PROBES else PROBE_SECONDS)

    async def _look_on(self) -> None:
        """Interfaces that came and went, and nodes that are gone."""
        while True:
            self._prober.listen()
            if self._browser is not None:
                await self._browser.look(self._reach.seen())
            self._found.forget(self._registry.fleet, self._clock.monotonic())
            self._news.set()
            await self._clock.sleep(LOOK_SECONDS)

    async def _tell_on(self) -> None:
        """Telling one thing may change what else there is to tell, since others hear of it too."""
        while True:
            await self._news.wait()
            self._news.clear()
            for event in list(fleet_changes(self._found.heard, self._registry.fleet, self._clock.wall())):
                if isinstance(event, NodeListed):
                    log.info("found the node %s at %s", event.spec.name, event.spec.address)
                else:
                    log.info("the node %s is not there any more", self._name_of(event.id))
                self._registry.emit(event)

    def _name_of(self, node_id: NodeId) -> str:
        node = self._registry.node(node_id)
        return node.name if node is not None else node_id

    def _hear(self, found: Found) -> None:
        options = self._options
        reason = distrust(found, bool(options.token), options.mode)
        reason = reason or self._found.hear(found, self._clock.monotonic())
        if reason is None:
            self._news.set()
        else:
            self._tell_once(found, reason)

    def _tell_once(self, found: Found, reason: str) -> None:
        node_id = NodeId(found.node_id)
        if self._told.get(node_id) == reason:
            return
        self._told[node_id] = reason
        if len(self._told) > TOLD_REMEMBERED:
            self._told.popitem(last=False)
        level = logging.DEBUG if reason == NOT_TRUSTED and len(self._told) > MOST_HINTS else logging.INFO
        log.log(level, "the node %s at %s is not used: %s", found.name, found.source, reason)

    def _follow_hint(self, places: tuple[Place, ...]) -> None:
        if places not in self._hints and len(self._hints) < MOST_HINTS:
            task = asyncio.get_running_loop().create_task(self._ask(places))
            self._hints[places] = task
            task.add_done_callback(lambda _: self._hints.pop(places, None))

    async def _ask(self, places: tuple[Place, ...]) -> None:
        for sent in range(1, HINT_PROBES + 1):
            self._prober.probe(places, everybody=False)
            await self._clock.sleep(next_probe_pause(sent))
