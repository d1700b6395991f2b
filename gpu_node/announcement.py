"""What a node says of itself to those who look for nodes, cut to what one datagram holds. Pure.

Must not know sockets, nor where models and memory are accounted: `Standing` is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_node.identity import Identity
from transport.interfaces import ANY_V4, ANY_V6, Interface, fitting, is_loopback, source_towards
from wire.beacon import DATAGRAM_MOST, Address, Announcement, pack_beacon

if TYPE_CHECKING:
    from gpu_node.residents import Residents

MOST_MODELS, MOST_MODEL_BYTES, MOST_NAME_BYTES, MOST_ADDRESSES = 16, 96, 64, 8  # as the datagram has them
_FIELD_BYTES = 4  # around one text in a list, rounded up
_ELSEWHERE = "192.0.2.1"  # nobody's (RFC 5737): only asked which way packets there would go
Route = Callable[[str], str | None]  # by which address of ours a host sees us
# An open answer goes to whoever the probe says has sent it: so it is never worth much to somebody who lies about that.
OPEN_ANSWER_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """The node as it is now. `load`: requests under way and waiting, by slots."""

    models: tuple[str, ...] = ()
    free_bytes: int = 0
    total_bytes: int = 0
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayPlace:
    """Where the relay listens: the address it is bound to, in figures (0.0.0.0 and :: are all of them)."""

    host: str
    port: int
    tls: bool = False

    @property
    def is_everywhere(self) -> bool:
        return self.host in (ANY_V4, ANY_V6)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def hears_on(self, interface: Interface) -> bool:
        if not self.is_everywhere:
            is_theirs = interface.address == ANY_V4 and not self.is_loopback and ":" not in self.host
            return self.host == interface.address or is_theirs  # the one that stands for all that are not known
        return not interface.is_v6 or self.host == ANY_V6


def standing_of(residents: Residents) -> Standing:
    """Loaded models first, then all others that can be asked for; memory and load over all devices."""
    loaded, accounts = residents.loaded, residents.accounts
    accounts = tuple(one for one in accounts if one.is_pool) or accounts  # models lie nowhere else then
    slots = sum(host.slots.running for host in loaded)
    inside = sum(host.slots.inside for host in residents.hosts)
    return Standing(
        models=tuple(dict.fromkeys([*(host.name for host in loaded), *residents.names()])),
        free_bytes=sum(account.free_bytes for account in accounts),
        total_bytes=sum(account.budget_bytes for account in accounts),
        load=inside / slots if slots else float(inside),
    )


def addresses_on(
    place: RelayPlace, interface: Interface, found: Iterable[Interface], route: Route = source_towards
) -> tuple[Address, ...]:
    """Where the relay is reached from `interface`'s network: never another network's address, which would mislead."""
    if not place.is_everywhere:
        return (Address(place.host, place.port),)
    if interface.address == ANY_V4:
        own = route(_ELSEWHERE)
        return (Address(own, place.port),) if own else ()
    same = [one for one in found if one.name == interface.name and place.hears_on(one) and not one.is_link_local]
    hosts = dict.fromkeys([interface.address, *(one.address for one in same)])
    return tuple(Address(host, place.port) for host in list(hosts)[:MOST_ADDRESSES])


def addresses_for(
    place: RelayPlace, host: str, found: Sequence[Interface], route: Route = source_towards
) -> tuple[Address, ...]:
    """Where `host` reaches the relay; empty when there is no way to it."""
    near = fitting(found, host)
    if near is not None:
        return addresses_on(place, near, found, route)
    if not place.is_everywhere:
        return (Address(place.host, place.port),)
    own = route(host)
    return (Address(own, place.port),) if own else ()


def may_answer(place: RelayPlace, host: str, signed: bool, found: Sequence[Interface]) -> bool:
    """Open probes are answered on our own networks only; on loopback nobody else is there to be answered."""
    if place.is_loopback or is_loopback(host):
        return is_loopback(host)
    return signed or fitting(found, host) is not None


@dataclass(frozen=True, slots=True)
class Occasion:
    """One datagram: where the relay is reached by who will get it, and what it answers, if anything."""

    serial: int
    sent_ms: int
    addresses: tuple[Address, ...]
    answers: bytes = b""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks: with a token everything is signed by it, and connecting takes it."""

    identity: Identity
    token: str | None = field(default=None, repr=False)
    tls: bool = False

    def compose(self, standing: Standing, occasion: Occasion, most_bytes: int = DATAGRAM_MOST) -> bytes:
        """The datagram. Models are left out until it has no more than `most_bytes`, which one without any may have."""
        bare = len(self._pack(standing, occasion, ()))
        models = fitting_models(standing.models, min(most_bytes, DATAGRAM_MOST) - bare)
        return self._pack(standing, occasion, models)

    def _pack(self, standing: Standing, occasion: Occasion, models: tuple[str, ...]) -> bytes:
        announcement = Announcement(
            node_id=self.identity.node_id,
            incarnation=self.identity.incarnation,
            serial=occasion.serial,
            sent_ms=occasion.sent_ms,
            name=cut_text(self.identity.name, MOST_NAME_BYTES),
            addresses=occasion.addresses,
            models=models,
            more_models=len(models) < len(standing.models),
            free_bytes=standing.free_bytes,
            total_bytes=standing.total_bytes,
            load=standing.load,
            answers=occasion.answers,
            leaving=occasion.leaving,
            token_wanted=bool(self.token),
            tls=self.tls,
        )
        return pack_beacon(announcement, self.token)


def fitting_models(names: Iterable[str], room_bytes: int) -> tuple[str, ...]:
    """As many of the names, in their order, as `room_bytes` hold; one that is too long is left out, not cut."""
    chosen: list[str] = []
    for name in names:
        size = len(name.encode(errors="replace"))
        fits = len(chosen) < MOST_MODELS and size <= MOST_MODEL_BYTES and size + _FIELD_BYTES <= room_bytes
        if fits and cut_text(name, size) == name:  # a file's name may hold bytes that are no text
            chosen.append(name)
            room_bytes -= size + _FIELD_BYTES
    return tuple(chosen)


def cut_text(text: str, most_bytes: int) -> str:
    """As much of it as fits, in whole characters."""
    return text.encode(errors="replace")[:most_bytes].decode(errors="ignore")
