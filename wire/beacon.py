"""The discovery datagram of UDP 8766: a probe asks who is there, an announcement says so.

     0               1               2               3
    +---------------+---------------+---------------+---------------+
    | 0x50 "P"      | 0x4C "L"      | version (1)   | kind | signed |
    +---------------+---------------+---------------+---------------+
    | record of fields ...                                          |
    +---------------------------------------------------------------+
    | HMAC-SHA256 of all the above by the shared token: 32 bytes,   |
    | there only when signed                                        |
    +---------------------------------------------------------------+

The fourth byte is the kind (1 probe, 2 announcement) and 0x80 when signed; an unsigned datagram is open: it proves
nothing, and who has a token believes none. Invariants: at most `DATAGRAM_MOST` bytes; every probe and announcement
carries a nonce or a serial, so a datagram that was recorded is worth nothing later (`Replays`). Must not know sockets
or clocks: time in milliseconds is an argument. Time stamps compare only within a wide skew.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from wire.codec import decode, encode
from wire.errors import BadPayload, OutOfBounds, TooLarge, UnknownVersion, WrongProof
from wire.frames import Buffer
from wire.kinds import Flag, Listing, Nested, Octets, Real, Text, Unsigned, byte_size

__all__ = [
    "BEACON_VERSION",
    "DATAGRAM_MOST",
    "NODES_REMEMBERED",
    "NODE_ID_BYTES",
    "NONCE_BYTES",
    "SKEW_MS",
    "Address",
    "Announcement",
    "Beacon",
    "Milliseconds",
    "NodeId",
    "Nonce",
    "Probe",
    "Replays",
    "pack_beacon",
    "unpack_beacon",
]

DATAGRAM_MOST = 1200  # below every path's MTU, so that no fragment can be lost on its own
BEACON_VERSION = 1
NODE_ID_BYTES = 16
NONCE_BYTES = 16
SKEW_MS = 300_000  # clocks that nobody sets drift by minutes; a replay within it is found by its serial or nonce
NODES_REMEMBERED = 1024  # more than any local network has; the one that was silent longest is forgotten

_MAGIC = b"PL"
_HEADER_BYTES = 4
_SIGNATURE_BYTES = 32
_SIGNED = 0x80
# Keeps a datagram's signature from being good for anything else that the token signs.
_PURPOSE = b"potluck beacon 1\0"

NodeId = Annotated[bytes, Octets(NODE_ID_BYTES, least=NODE_ID_BYTES)]
Nonce = Annotated[bytes, Octets(NONCE_BYTES, least=NONCE_BYTES)]
Milliseconds = Annotated[int, Unsigned((1 << 63) - 1)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the node's relay listens."""

    host: Annotated[str, Text(64, least=1)]
    port: Annotated[int, Unsigned(0xFFFF, least=1)]


@dataclass(frozen=True, slots=True)
class Probe:
    """Who is there? Sent by clients; the nonce comes back in the answers."""

    nonce: Nonce
    sent_ms: Milliseconds
    name: Annotated[str, Text(64)] = ""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A node as it is now; unasked every few seconds, or the answer to the probe whose nonce it repeats.

    `incarnation` is higher after every start of the node, `serial` with every announcement of one incarnation.
    """

    node_id: NodeId
    incarnation: Annotated[int, Unsigned()]
    serial: Annotated[int, Unsigned()]
    sent_ms: Milliseconds
    name: Annotated[str, Text(64)]
    addresses: Annotated[tuple[Address, ...], Listing(Nested(Address), 8, least=1)]
    models: Annotated[tuple[str, ...], Listing(Text(96, least=1), 16)] = ()
    more_models: Annotated[bool, Flag()] = False  # the list was cut: ask the node
    free_bytes: Annotated[int, Unsigned()] = 0
    total_bytes: Annotated[int, Unsigned()] = 0
    load: Annotated[float, Real(least=0.0)] = 0.0  # requests under way and waiting, by slots
    answers: Annotated[bytes, Octets(NONCE_BYTES)] = b""  # a probe's nonce
    leaving: Annotated[bool, Flag()] = False
    token_wanted: Annotated[bool, Flag()] = False  # connecting takes the shared token
    tls: Annotated[bool, Flag()] = False  # the relay speaks TLS


Beacon = Probe | Announcement
_KINDS: dict[int, type[Probe] | type[Announcement]] = {1: Probe, 2: Announcement}


def pack_beacon(beacon: Beacon, token: str | None) -> bytes:
    """The datagram, signed by `token`; without one it is open. Raises OutOfBounds for what does not fit."""
    kind = next(number for number, record in _KINDS.items() if record is type(beacon))
    mark = kind | _SIGNED if token else kind
    data = b"".join((_MAGIC, bytes((BEACON_VERSION, mark)), *encode(beacon)))
    if token:
        data += _signature(data, token)
    if len(data) > DATAGRAM_MOST:
        raise OutOfBounds(f"a datagram of {len(data)} bytes; {DATAGRAM_MOST} is the most: cut the list of models")
    return data


def unpack_beacon(datagram: Buffer, token: str | None) -> tuple[Beacon, bool]:
    """What was sent, and whether `token` signed it. Raises RemoteErrors.

    With a token nothing unsigned is believed (WrongProof). Without one a signed datagram is read and not believed:
    the second value is False.
    """
    view = memoryview(datagram)
    if byte_size(view) > DATAGRAM_MOST:
        raise TooLarge(f"a datagram of {byte_size(view)} bytes; {DATAGRAM_MOST} is the most")
    if len(view) < _HEADER_BYTES or view[:2] != _MAGIC:
        raise BadPayload("not one of our datagrams")
    if view[2] != BEACON_VERSION:
        raise UnknownVersion(f"a datagram of version {view[2]}, this side speaks {BEACON_VERSION}")
    record = _KINDS.get(view[3] & ~_SIGNED)
    if record is None:
        raise BadPayload(f"{view[3]:#04x} is no kind of datagram")
    body, signed = _checked_body(view, token)
    return decode(body, record), signed


def _checked_body(view: memoryview, token: str | None) -> tuple[memoryview, bool]:
    if not view[3] & _SIGNED:
        if token:
            raise WrongProof("the datagram is not signed")
        return view[_HEADER_BYTES:], False
    if len(view) < _HEADER_BYTES + _SIGNATURE_BYTES:
        raise BadPayload("the datagram ends within its signature")
    whole, signature = view[:-_SIGNATURE_BYTES], view[-_SIGNATURE_BYTES:]
    if token and not hmac.compare_digest(_signature(whole, token), signature):
        raise WrongProof("the datagram is signed with another token")
    return whole[_HEADER_BYTES:], bool(token)


def _signature(data: Buffer, token: str) -> bytes:
    keyed = hmac.new(token.encode(), _PURPOSE, "sha256")
    keyed.update(data)
    return keyed.digest()


class Replays:
    """Tells news from what was heard before. Holds the latest number of each node, of so many nodes at the most."""

    def __init__(self, skew_ms: int = SKEW_MS, nodes: int = NODES_REMEMBERED) -> None:
        self._skew_ms, self._most = skew_ms, nodes
        self._latest: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._nonces: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest) + len(self._nonces)

    def is_news(self, beacon: Beacon, now_ms: int, asked: Collection[bytes] = ()) -> bool:
        """Whether to act on it; remembers it if so. `now_ms` is the wall clock, milliseconds since 1970.

        `asked` are the nonces of our own probes: an answer that repeats one is fresh whatever the node's clock says.
        """
        fresh = isinstance(beacon, Announcement) and beacon.answers in asked
        if not fresh and abs(now_ms - beacon.sent_ms) > self._skew_ms:
            return False
        return self._is_new_nonce(beacon.nonce) if isinstance(beacon, Probe) else self._is_later(beacon, fresh)

    def _is_new_nonce(self, nonce: bytes) -> bool:
        if nonce in self._nonces:
            return False
        self._nonces[nonce] = None
        if len(self._nonces) > self._most:
            self._nonces.popitem(last=False)
        return True

    def _is_later(self, beacon: Announcement, fresh: bool) -> bool:
        number = (beacon.incarnation, beacon.serial)
        latest = self._latest.get(beacon.node_id, (-1, -1))
        # A node whose clock was set back has a lower incarnation: only a fresh answer is believed that.
        if number == latest or (number < latest and not (fresh and beacon.incarnation != latest[0])):
            return False
        self._latest[beacon.node_id] = number
        self._latest.move_to_end(beacon.node_id)
        if len(self._latest) > self._most:
            self._latest.popitem(last=False)
        return True
