"""What a phone tells of itself when it joins, and the entry of the fleet file that it becomes. Pure.

The owner's words win: a name, weight, tags or host name that stand in the file are kept when the phone comes again.
Must not know tokens or HTTP.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.adb.plan import LOOPBACK, SEEN_AT
from server.adb.ports import preferred_port
from server.backends.resolver import is_address
from server.errors import RequestInvalid
from server.nodes import NodeId, NodeSpec
from server.phones_entry import CABLE_HOST

PHONE_ID = re.compile(r"[0-9a-f]{32}")
LONGEST_TEXT = 100  # of what a phone tells: more is no product name
DISPLACED = "displaced"  # another phone has its address now, until it comes with a new one

Details = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Registration:
    id: NodeId
    name: str
    port: int
    details: Details = field(default_factory=dict)


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """A phone's word as it may stand in a table: printable, short, without space around it."""
    return "".join(character for character in text if character.isprintable())[:longest].strip()


def joined(
    specs: Sequence[NodeSpec], phone: Registration, host: str, names: Collection[str] = ()
) -> tuple[NodeSpec, ...]:
    """The fleet file's nodes once this phone, found at `host`, is one of them. `names`: host names that lead there.

    Raises RequestInvalid.
    """
    known = next((spec for spec in specs if spec.id == phone.id), None) or _same_place(specs, phone, {host, *names})
    if known is not None and known.kind != "ollama":
        what = "id" if known.id == phone.id else "address"
        raise RequestInvalid(f"this {what} belongs to another kind of node in the fleet file", field="id")
    others = [_displaced(spec, host, phone.port) for spec in specs if spec is not known]
    if known is None:
        name = distinct(phone.name, {spec.name for spec in others})
        spec = NodeSpec(phone.id, name, "ollama", host, phone.port, weight=None, details=phone.details)
        return (*others, spec)
    spec = renewed(known, phone, host)
    return tuple(spec if one is known else _displaced(one, host, phone.port) for one in specs)


def renewed(known: NodeSpec, phone: Registration, host: str) -> NodeSpec:
    """The phone's entry after it has told where and what it is now."""
    spec = moved(known, host, phone.port)
    name = phone.name if spec.name in (spec.id, known.address) else spec.name
    marks = {key: value for key, value in spec.details.items() if key in (DISPLACED, SEEN_AT)}
    return replace(spec, id=phone.id, name=name, details={**phone.details, **marks})


def listed(found: NodeSpec) -> NodeSpec:
    """The entry of a phone that was found on a cable: its serial says where it is. Raises RequestInvalid.

    What the phone tells of itself stays out: the owner's words would win over it when it tells anew.
    """
    if found.serial is None:
        raise RequestInvalid(f"'{found.name}' comes and goes by itself, and has no serial to list it by")
    return replace(found, host=CABLE_HOST, port=preferred_port(found.serial), origin="file", details={})


def moved(known: NodeSpec, host: str, port: int) -> NodeSpec:
    """The entry with another address. A host name follows the phone by itself, and only notes the address, by which a
    phone that is plugged in is known; where a cable ends is this machine's business. A port at either would be one
    that nobody has looked at.
    """
    if is_named(known):
        return replace(known, details={**known.details, SEEN_AT: host})
    if not _is_movable(known):
        return known
    details = {key: value for key, value in known.details.items() if key not in (DISPLACED, SEEN_AT)}
    return replace(known, host=host, port=port, details=details, enabled=known.enabled or DISPLACED in known.details)


def place_of(spec: NodeSpec) -> str:
    """The address at which the phone was last, as far as its entry tells."""
    return str(spec.details.get(SEEN_AT, spec.host)) if is_named(spec) else spec.host


def is_named(spec: NodeSpec) -> bool:
    """Is it listed by a host name, which somebody's name server answers for?"""
    return spec.host not in LOOPBACK and not is_address(spec.host)


def is_at(spec: NodeSpec, host: str, port: int) -> bool:
    """Would a phone that comes from there be called where it is called already?"""
    return not _is_movable(spec) or (DISPLACED not in spec.details and (spec.host, spec.port) == (host, port))


def distinct(name: str, taken: Collection[str]) -> str:
    """Phones of one make all have one name: then a number tells them apart."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} {number}"
    return found


def _same_place(specs: Sequence[NodeSpec], phone: Registration, hosts: Collection[str]) -> NodeSpec | None:
    """The entry that the owner wrote by hand for this phone, whatever he calls it: two would count it twice."""
    found = (spec for spec in specs if spec.host in hosts and spec.port == phone.port)
    return next((spec for spec in found if not PHONE_ID.fullmatch(spec.id)), None)


def _displaced(spec: NodeSpec, host: str, port: int) -> NodeSpec:
    """Another joined phone that was at this address is somewhere else now, and must not count twice."""
    if (spec.host, spec.port) != (host, port) or not PHONE_ID.fullmatch(spec.id) or not spec.enabled:
        return spec
    return replace(spec, enabled=False, details={**spec.details, DISPLACED: 1})


def _is_movable(spec: NodeSpec) -> bool:
    """Only an address may change by the phone's word."""
    return is_address(spec.host) and not ipaddress.ip_address(spec.host.partition("%")[0]).is_loopback
