"""The nodes that discovery has heard, and what that means for the fleet. Pure: time is an argument, nothing is sent.

Invariants: a node that the owner lists is never counted twice, by whatever name or address it is heard; a node keeps
the address it is used by while that one is heard, since one with several networks is heard at all of them in turn; the
table is bounded, and what nobody's token signed can fill only a part of it. Must not know sockets or mDNS.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from server.nodes import Node, NodeId, NodeSpec, NodeStatus
from server.registry import Fleet, NodeListed, NodeUnlisted
from transport.found import Found

Mode = Literal["auto", "on", "off"]
Place = tuple[str, int]

MOST_NODES = 256
MOST_OPEN_NODES_OF_A_SOURCE = 8  # programs on one machine that share no token with us
PLACE_SECONDS = 12.0  # two announcements were missed: another place of the same node is as good
FORGET_SECONDS = 60.0
MOST_PLACES = 16

# Why a node that was heard is not used. The texts go to the log, once for each node.
WANTS_TOKEN = "it wants a token: set POTLUCK_NODE_TOKEN to its own"
NOT_TRUSTED = "nothing proves who it is: share a token with it by POTLUCK_NODE_TOKEN, or set POTLUCK_DISCOVERY=on"
TOO_MANY = "too many were found"


@dataclass(frozen=True, slots=True)
class Heard:
    """A node as it was last heard. `place` is used for it; `asked_at` is the UDP place that answers probes."""

    id: NodeId
    name: str
    incarnation: int
    place: Place
    places: Mapping[Place, float]  # all it was heard to be at, and when
    asked_at: Place
    heard_at: float
    tls: bool = False
    open_source: str | None = None  # where it spoke from, of one that no token vouches for

    @property
    def spec(self) -> NodeSpec:
        host, port = self.place
        return NodeSpec(
            id=self.id, name=self.name, kind="relay", host=host, port=port, tls=self.tls, origin="discovered"
        )


def distrust(found: Found, has_token: bool, mode: Mode) -> str | None:
    """Why this one must not be used; None for those that may be.

    With a token only what it signed gets here. Without one this very machine is trusted, and where the owner says so
    (mode "on") our own network; what is told of there is anybody's word, and prompts would go to it.
    """
    if has_token and not found.signed:
        return NOT_TRUSTED
    if not has_token and found.announcement.token_wanted:
        return WANTS_TOKEN
    if found.signed or found.is_here:
        return None
    return None if mode == "on" and _is_private(found.source) else NOT_TRUSTED


class FoundNodes:
    """All nodes that were heard lately, by id."""

    def __init__(self) -> None:
        self.heard: dict[NodeId, Heard] = {}

    def hear(self, found: Found, now: float) -> str | None:
        """Remember it. Returns why not, if not."""
        node_id = NodeId(found.node_id)
        known = self.heard.get(node_id)
        if found.announcement.leaving:
            if known is not None and found.announcement.incarnation >= known.incarnation:
                del self.heard[node_id]
            return None
        if known is None and self._is_full(found):
            return TOO_MANY
        self.heard[node_id] = heard_again(known, found, now)
        return None

    def forget(self, fleet: Fleet, now: float) -> None:
        """Those that were silent for long, unless they still answer the probes of health."""
        for node_id, heard in list(self.heard.items()):
            node = fleet.nodes.get(node_id)
            answers = node is not None and node.status is NodeStatus.READY
            if now - heard.heard_at > FORGET_SECONDS and not answers:
                del self.heard[node_id]

    def silent(self, now: float) -> list[Place]:
        """Where to ask those that were not heard of late."""
        return [heard.asked_at for heard in self.heard.values() if now - heard.heard_at > PLACE_SECONDS]

    def _is_full(self, found: Found) -> bool:
        if len(self.heard) >= MOST_NODES:
            return True
        of_source = Counter(heard.open_source for heard in self.heard.values())
        return not found.signed and of_source[found.source] >= MOST_OPEN_NODES_OF_A_SOURCE


def heard_again(known: Heard | None, found: Found, now: float) -> Heard:
    """What is known of a node after it was heard once more."""
    heard_at = [(each.host, each.port) for each in found.addresses]
    same_run = known is not None and known.incarnation == found.announcement.incarnation
    before = dict(known.places) if known is not None and same_run else {}
    recent = {place: at for place, at in before.items() if now - at <= FORGET_SECONDS}
    places = dict(list({**recent, heard_at[0]: now}.items())[-MOST_PLACES:])
    keeps = known is not None and now - places.get(known.place, float("-inf")) <= PLACE_SECONDS
    return Heard(
        id=NodeId(found.node_id),
        name=found.name,
        incarnation=found.announcement.incarnation,
        place=known.place if known is not None and keeps else heard_at[0],
        places=places,
        asked_at=(found.source, found.source_port),
        heard_at=now,
        tls=found.announcement.tls,
        open_source=None if found.signed else found.source,
    )


def fleet_changes(heard: Mapping[NodeId, Heard], fleet: Fleet, wall: float) -> Iterator[NodeListed | NodeUnlisted]:
    """What the fleet has to be told. `wall` is the wall clock."""
    others = [node for node in fleet.nodes.values() if node.spec.origin != "discovered"]
    wanted = {one.id: one for one in heard.values() if not is_listed(one, others)}
    for node in fleet.nodes.values():
        left = node.id not in wanted and node.status is not NodeStatus.DRAINING
        if node.spec.origin == "discovered" and left:
            yield NodeUnlisted(node.id, wall)
    unsure = any(is_unknown_relay(node) for node in others)
    for node_id, spec in _named_apart(wanted, others).items():
        known = fleet.nodes.get(node_id)
        is_news = not unsure if known is None else known.spec != spec or known.status is NodeStatus.DRAINING
        if is_news:
            yield NodeListed(spec, wall)


def is_listed(heard: Heard, others: Iterable[Node]) -> bool:
    """Is this one of the nodes that are there by another's word (the owner's file, or our own child)?"""
    return any(_is_same(heard, node) for node in others)


def _is_same(heard: Heard, node: Node) -> bool:
    if node.id == heard.id:
        return True
    if node.report is not None and node.report.node_id:
        return node.report.node_id == heard.id
    place = _figures(node.spec.host, node.spec.port)
    if node.spec.kind == "relay":
        return place in heard.places
    # One of ours that is listed by its HTTP port, which does not tell its id: on the same host it is this one.
    return node.is_gpu_node and place[0] in {host for host, _ in heard.places}


def is_unknown_relay(node: Node) -> bool:
    """A listed one that has not told who it is: it may be any that was heard. Soon it has told, or is silent."""
    return node.spec.kind == "relay" and node.status is NodeStatus.UNKNOWN and node.report is None


def _named_apart(wanted: Mapping[NodeId, Heard], others: Iterable[Node]) -> dict[NodeId, NodeSpec]:
    """Hosts that were set up from one image all have one name: then a part of the id tells them apart."""
    names = Counter([*(heard.name for heard in wanted.values()), *(node.name for node in others)])
    return {
        heard.id: replace(heard.spec, name=f"{heard.name}-{heard.id[:4]}") if names[heard.name] > 1 else heard.spec
        for heard in wanted.values()
    }


def _figures(host: str, port: int) -> Place:
    return ("127.0.0.1" if host == "localhost" else host), port


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_private
    except ValueError:
        return False
