"""Which forwards there should be, and which node of the fleet each phone is. Pure.

Invariants: a phone counts once, whoever named it first; a forward that a person made is used, never removed, and never
pointed at another phone; of our own only those that nothing uses are removed. Knows no socket and no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from server.adb.ports import free_port, is_choice, preferred_port
from server.adb.states import AdbPhone
from server.nodes import DEFAULT_OLLAMA_PORT, NodeId, NodeSpec

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SEEN_AT = "address"  # a detail of entries by host name: where the phone was when it told of itself last


@dataclass(frozen=True, slots=True)
class Forward:
    """A local TCP port that leads to a phone's."""

    serial: str
    local_port: int
    remote_port: int = DEFAULT_OLLAMA_PORT


@dataclass(frozen=True, slots=True)
class Place:
    """Where a phone is in the fleet. `port` None: reached elsewhere than through adb (an entry with an address)."""

    node: NodeId
    port: int | None
    listed: bool  # by the owner, so that the node is not ours to list


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of earlier: forwards we made, those of persons by phone, ports that others hold."""

    made: frozenset[Forward] = frozenset()
    adopted: Mapping[str, Forward] = field(default_factory=dict)
    blocked: frozenset[int] = frozenset()
    ports: Mapping[str, int] = field(default_factory=dict)  # where each phone is listed by us
    left: frozenset[Forward] = frozenset()  # there when we came, and not removed since
    silent: frozenset[NodeId] = frozenset()  # nodes that have stopped answering


@dataclass(frozen=True, slots=True)
class Plan:
    create: tuple[Forward, ...] = ()
    remove: tuple[Forward, ...] = ()
    kept: frozenset[Forward] = frozenset()  # of those that exist: ours and in use, whichever run made them
    places: Mapping[str, Place] = field(default_factory=dict)  # by phone
    adopted: Mapping[str, Forward] = field(default_factory=dict)
    conflicts: Mapping[str, int] = field(default_factory=dict)  # the phone's port is somebody else's


@dataclass(slots=True)
class _Draft:
    """The plan while it is made."""

    existing: tuple[Forward, ...]
    memory: Memory
    create: list[Forward] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    adopted: dict[str, Forward] = field(default_factory=dict)
    conflicts: dict[str, int] = field(default_factory=dict)

    def taken(self) -> set[int]:
        return {forward.local_port for forward in (*self.existing, *self.create)} | self.memory.blocked

    def of(self, phone: AdbPhone) -> list[Forward]:
        return [forward for forward in self.existing if forward.serial in phone.serials]


def plan_forwards(
    phones: Iterable[AdbPhone],
    serving: Collection[str],
    existing: Iterable[Forward],
    entries: Iterable[NodeSpec],
    memory: Memory,
) -> Plan:
    """`serving`: ids of phones that answer at their port; `entries`: the nodes that others than us have listed."""
    draft = _Draft(tuple(existing), memory)
    usable = [phone for phone in phones if phone.usable]
    known = list(entries)
    matched = {phone.id: entry_for(phone, draft.of(phone), known, memory) for phone in usable}
    named = {entry.port for entry in matched.values() if entry is not None and entry.host in LOOPBACK}
    # Those with an entry first: their ports are written down.
    for phone in sorted(usable, key=lambda phone: matched[phone.id] is None):
        entry = matched[phone.id]
        if entry is not None:
            _place_entry(draft, phone, entry)
        elif phone.id in serving:
            _place_found(draft, phone, named)
    remove = [forward for phone in usable for forward in _stale(draft, phone)]
    ours = {forward for phone in usable for forward in _ours_of(draft, phone)}
    used = {
        (serial, place.port) for phone in usable if (place := draft.places.get(phone.id)) for serial in phone.serials
    }
    kept = frozenset(forward for forward in ours if (forward.serial, forward.local_port) in used).difference(remove)
    return Plan(tuple(draft.create), tuple(remove), kept, draft.places, draft.adopted, draft.conflicts)


def entry_for(
    phone: AdbPhone, forwards: Iterable[Forward], entries: Iterable[NodeSpec], memory: Memory
) -> NodeSpec | None:
    """The entry that means this phone: by its serial, by a forward that leads from the entry's address to it, or, while
    it answers there, by an address of the phone's own: it has joined over the network and hangs on a cable as well."""
    known = list(entries)
    for entry in known:
        if entry.serial is not None and entry.serial in {phone.id, *phone.serials}:
            return entry
    kept = memory.adopted.get(phone.id)
    ports = {forward.local_port for forward in (*forwards, *([kept] if kept else []))}
    unnamed = [entry for entry in known if entry.serial is None]
    led = [entry for entry in unnamed if entry.host in LOOPBACK and entry.port in ports]
    joined = [entry for entry in unnamed if entry.id not in memory.silent and _is_at_home(phone, entry)]
    return next(iter(led + joined), None)


def _is_at_home(phone: AdbPhone, entry: NodeSpec) -> bool:
    """Is its address the phone's? Addresses of separate networks may be equal; then other things differ."""
    told = {"chip": phone.told.chip, "android": phone.told.android}
    differ = any(word and entry.details.get(name, word) != word for name, word in told.items())
    at = {entry.host, entry.details.get(SEEN_AT)}
    return entry.kind == "ollama" and not at.isdisjoint(phone.told.addresses) and not differ


def is_movable(entry: NodeSpec) -> bool:
    """An entry with a serial and no port of the owner's choosing has the serial's own, or one of the next."""
    return entry.serial is not None and entry.host in LOOPBACK and is_choice(entry.serial, entry.port)


def _place_entry(draft: _Draft, phone: AdbPhone, entry: NodeSpec) -> None:
    if entry.host not in LOOPBACK:
        draft.places[phone.id] = Place(entry.id, None, listed=True)
        return
    port = entry.port
    holder = next((forward for forward in draft.existing if forward.local_port == port), None)
    if holder is not None and holder.serial in phone.serials:
        draft.places[phone.id] = Place(entry.id, port, listed=True)
        if not _is_ours(draft.memory, phone, holder):
            draft.adopted[phone.id] = holder
        if holder.serial != phone.transport.serial and _is_ours(draft.memory, phone, holder):
            draft.create.append(Forward(phone.transport.serial, holder.local_port, holder.remote_port))
        return
    if port in draft.taken():
        moved = free_port(phone.id, draft.taken()) if is_movable(entry) else None
        if moved is None:
            draft.conflicts[phone.id] = entry.port
            return
        port = moved
    kept = draft.memory.adopted.get(phone.id)
    remote = kept.remote_port if kept is not None else DEFAULT_OLLAMA_PORT
    forward = Forward(phone.transport.serial, port, remote)
    if kept is not None and kept.local_port == port:
        draft.adopted[phone.id] = forward  # a person's, made again after the phone was away
    draft.create.append(forward)
    draft.places[phone.id] = Place(entry.id, port, listed=True)


def _place_found(draft: _Draft, phone: AdbPhone, named: set[int]) -> None:
    """A phone that nobody listed: by the forward it has, a person's before ours, else by a new one."""
    usual = [forward for forward in draft.of(phone) if forward.remote_port == DEFAULT_OLLAMA_PORT]
    usual = [forward for forward in usual if forward.serial == phone.transport.serial]
    theirs = [forward for forward in usual if not _is_ours(draft.memory, phone, forward)]
    if theirs:
        draft.adopted[phone.id] = theirs[0]
    now = draft.memory.ports.get(phone.id)
    used = next((forward for forward in usual if forward.local_port == now), None)
    used = used or next(iter(theirs or usual), None)
    if used is None:
        used = _made_again(draft, phone, named)
    if used is None:
        draft.conflicts[phone.id] = preferred_port(phone.id)
        return
    draft.places[phone.id] = Place(NodeId(phone.id), used.local_port, listed=False)


def _made_again(draft: _Draft, phone: AdbPhone, named: set[int]) -> Forward | None:
    """A person's forward that went with its phone, else one of ours."""
    kept = draft.memory.adopted.get(phone.id)
    own = {forward.local_port for forward in _ours_of(draft, phone)}
    taken = (draft.taken() - own) | named
    if kept is not None and kept.local_port not in taken:
        forward = draft.adopted[phone.id] = Forward(phone.transport.serial, kept.local_port)
    else:
        port = free_port(phone.id, taken)
        if port is None:
            return None
        forward = Forward(phone.transport.serial, port)
    draft.create.append(forward)
    return forward


def _stale(draft: _Draft, phone: AdbPhone) -> list[Forward]:
    """Ours that nothing uses, and those that are to lead the other way to the same phone. What looks like ours and
    came after us is another gateway's, which would make it again each time."""
    place = draft.places.get(phone.id)
    used = None if place is None else place.port
    moved = {forward.local_port for forward in draft.create}
    adopted = draft.adopted.get(phone.id)
    return [
        forward
        for forward in _ours_of(draft, phone)
        if forward in draft.memory.made | draft.memory.left
        and forward != adopted
        and (forward.local_port in moved or forward.local_port != used)
    ]


def _ours_of(draft: _Draft, phone: AdbPhone) -> list[Forward]:
    return [forward for forward in draft.of(phone) if _is_ours(draft.memory, phone, forward)]


def _is_ours(memory: Memory, phone: AdbPhone, forward: Forward) -> bool:
    """We made it in this run, or it is what an earlier run, or another gateway, would have made."""
    kept = memory.adopted.get(phone.id)
    if kept is not None and kept.local_port == forward.local_port:
        return False
    looks_so = forward.remote_port == DEFAULT_OLLAMA_PORT and is_choice(phone.id, forward.local_port)
    return forward in memory.made or looks_so
