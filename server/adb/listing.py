"""Tells the registry of phones behind adb: who came, who left, and what they are.

Phones that nobody listed become nodes of origin "adb"; entries of the owner keep all that he wrote and get the port
that leads to their phone, and what it tells of itself. Must not know the adb server or forwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from server.adb.plan import LOOPBACK, Place
from server.adb.states import AdbPhone, Details, details_of, plain_word
from server.nodes import NodeId, NodeSpec, NodeStatus
from server.registry import NodeListed, NodeUnlisted, Registry, SamePhone

ADB_HOST = "127.0.0.1"  # where forwards listen, whatever an entry calls it

log = logging.getLogger(__name__)


class Listing:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._completed: dict[NodeId, Details] = {}  # what entries were given
        self._nodes: dict[str, NodeId] = {}  # which node each phone is, by phone

    def entries(self) -> list[NodeSpec]:
        """What others than we have listed."""
        nodes = self._registry.fleet.nodes.values()
        gone = NodeStatus.DRAINING
        return [node.spec for node in nodes if node.spec.origin != "adb" and node.status is not gone]

    def silent(self) -> frozenset[NodeId]:
        nodes = self._registry.fleet.nodes.values()
        return frozenset(node.id for node in nodes if node.status is NodeStatus.SILENT)

    def tell(
        self, phones: Mapping[str, AdbPhone], places: Mapping[str, Place], versions: Mapping[str, str], now: float
    ) -> None:
        """`places` of those that are reached now, `versions` of their Ollamas when they were plugged in; by phone."""
        wanted = {place.node: phone for phone, place in places.items() if not place.listed}
        self._unlist(lambda node_id: node_id not in wanted, now)
        names = {phone.id: phone.name for phone in phones.values()}
        for node_id, phone in wanted.items():
            details = self._details(phones[phone], node_id, versions)
            self._list(_spec(node_id, self._distinct(names, phone), places[phone], details), now)
        self._complete_entries(phones, places, versions, now)
        self._tell_moves(places, now)

    def _tell_moves(self, places: Mapping[str, Place], now: float) -> None:
        """A phone on a cable that has joined by its network as well is one node or the other, and as hot as it was."""
        for phone, place in places.items():
            formerly = self._nodes.get(phone, place.node)
            if formerly != place.node:
                self._registry.emit(SamePhone(place.node, formerly, now))
        self._nodes = {phone: place.node for phone, place in places.items()}

    def clear(self, now: float) -> None:
        """No phone is reached any more."""
        self._unlist(lambda _: True, now)

    def _unlist(self, left: Callable[[NodeId], bool], now: float) -> None:
        for node in list(self._registry.fleet.nodes.values()):
            if node.spec.origin == "adb" and left(node.id) and node.status is not NodeStatus.DRAINING:
                log.info("the phone %s left", node.name)
                self._registry.emit(NodeUnlisted(node.id, now))

    def _list(self, spec: NodeSpec, now: float) -> None:
        known = self._registry.node(spec.id)
        if known is None or known.spec != spec or known.status is NodeStatus.DRAINING:
            log.info("the phone %s is reached through adb at port %s", spec.name, spec.port)
            self._registry.emit(NodeListed(spec, now))

    def _complete_entries(
        self, phones: Mapping[str, AdbPhone], places: Mapping[str, Place], versions: Mapping[str, str], now: float
    ) -> None:
        """Entries without a port of their own whose usual one was taken, and what their phones tell of themselves."""
        for phone, place in places.items():
            node = self._registry.node(place.node)
            if not place.listed or place.port is None or node is None:
                continue
            before, told = self._completed.get(node.id, {}), self._details(phones[phone], node.id, versions)
            written = {name: word for name, word in node.spec.details.items() if before.get(name) != word}
            self._completed[node.id] = told
            host = ADB_HOST if node.spec.host in LOOPBACK else node.spec.host
            spec = replace(node.spec, host=host, port=place.port, details={**told, **written})
            if spec != node.spec:
                self._registry.emit(NodeListed(spec, now))

    def _details(self, phone: AdbPhone, node_id: NodeId, versions: Mapping[str, str]) -> Details:
        """With the version that its Ollama tells now, else the one that it had when it was plugged in."""
        node = self._registry.node(node_id)
        version = node.report.version if node is not None and node.report is not None else ""
        return details_of(phone, plain_word(version) or versions.get(phone.id, ""))

    def _distinct(self, names: Mapping[str, str], phone: str) -> str:
        """A lab's phones are often of one model; then the end of the serial tells them apart. A name stays."""
        name = names[phone]
        choices = [name, f"{name} {phone[-4:]}", f"{name} {phone}"]
        others = {node.name for node in self._registry.fleet.nodes.values() if node.id != phone}
        known = self._registry.node(NodeId(phone))
        if known is not None and known.name in choices and known.name not in others:
            return known.name
        shared = sum(other == name for other in names.values()) > 1
        return next((choice for choice in choices[shared:] if choice not in others), choices[-1])


def _spec(node: NodeId, name: str, place: Place, details: Details) -> NodeSpec:
    return NodeSpec(
        node, name, "ollama", ADB_HOST, place.port or 0,
        weight=None, serial=str(node), origin="adb", details=details,
    )  # fmt: skip
