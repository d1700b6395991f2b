"""How two stages agree on a link: both know the token, mean the same stages and the same epoch. Bytes in, bytes out.

    sender                                   receiver
      hello (stages, epoch, largest frame, nonce)  ->
                                             <-  hello (its largest frame, nonce)
      proof of the token                     ->
                                             <-  verdict, and proof of the token

The proofs are HMACs over both nonces and all that was said (`wire.auth`), so that a recorded one opens nothing. A
stranger learns that it is wrong, and nothing of the stages. Every message has one length, so no side reads too far.
Must not know sockets or clocks.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from gpu_node.pipeline.ends import LinkEnds
from gpu_node.pipeline.errors import LinkFault, LinkRefused
from wire.auth import NONCE_SIZE, PROOF_SIZE, check_proof, proof_of, transcript_of
from wire.errors import WrongProof
from wire.state import Role
from wire.tensors import PIECE_MOST

VERSION = 1
_MAGIC = b"PLNK"
_HELLO = struct.Struct(f">4sBxHHxxII{NONCE_SIZE}s")
HELLO_SIZE = _HELLO.size
ANSWER_SIZE = 1 + PROOF_SIZE


class Verdict(IntEnum):
    ACCEPTED = 0
    WRONG_TOKEN = 1
    UNKNOWN_STAGES = 2
    OTHER_EPOCH = 3
    OTHER_VERSION = 4


_WORDS = {
    Verdict.WRONG_TOKEN: "its token is another one",
    Verdict.UNKNOWN_STAGES: "it awaits no link between these stages",
    Verdict.OTHER_EPOCH: "it is in another epoch of the plan",
    Verdict.OTHER_VERSION: f"it does not speak version {VERSION} of the link",
}


@dataclass(frozen=True, slots=True)
class Side:
    """What one side brings: its own, a fresh nonce from `secrets`, and the token that both share."""

    token: str
    nonce: bytes
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class Agreement:
    ends: LinkEnds
    peer_frame_bytes: int


@dataclass(frozen=True, slots=True)
class _Hello:
    ends: LinkEnds
    frame_bytes: int
    nonce: bytes
    version: int


class SenderGreeting:
    """The side that connects. Write `begin()`, then give `receive` exactly `needed` bytes each time, until agreed."""

    def __init__(self, side: Side, ends: LinkEnds) -> None:
        self._side, self._ends = side, ends
        self._mine, self._theirs = _hello_bytes(side, ends), b""
        self._peer: _Hello | None = None
        self.agreement: Agreement | None = None

    @property
    def needed(self) -> int:
        return ANSWER_SIZE if self._peer else HELLO_SIZE

    def begin(self) -> bytes:
        return self._mine

    def receive(self, data: bytes) -> bytes:
        """What to write next. Raises `LinkRefused`, `LinkFault`."""
        if self._peer is None:
            self._peer, self._theirs = _read_hello(data), data
            if self._peer.version != VERSION:
                raise refused(Verdict.OTHER_VERSION)
            return self._proof(Role.CLIENT)
        verdict = _verdict_of(data[0])
        if verdict != Verdict.ACCEPTED:
            raise refused(verdict)
        try:
            check_proof(data[1:], self._proof(Role.SERVER))
        except WrongProof as error:
            raise refused(Verdict.WRONG_TOKEN) from error
        self.agreement = Agreement(self._ends, self._peer.frame_bytes)
        return b""

    def _proof(self, role: Role) -> bytes:
        assert self._peer is not None, "its hello came before"
        said = transcript_of((self._mine, self._theirs))
        return proof_of(role, self._side.token, self._side.nonce, self._peer.nonce, said)


class ReceiverGreeting:
    """The side that listens. Give `receive` exactly `needed` bytes each time; write what it returns, also a refusal."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._said: tuple[bytes, bytes] = (b"", b"")
        self._peer: _Hello | None = None
        self.agreement: Agreement | None = None
        self.verdict: Verdict | None = None  # None: it is not over

    @property
    def needed(self) -> int:
        return PROOF_SIZE if self._peer else HELLO_SIZE

    def receive(self, data: bytes, expected: Collection[LinkEnds]) -> bytes:
        """What to write next. Raises `LinkFault` for what is no greeting: nothing is answered to that."""
        if self._peer is None:
            self._peer = _read_hello(data)
            answer = _hello_bytes(self._side, LinkEnds(0, 0))
            self._said = (data, answer)
            return answer
        self.verdict = self._judge(self._peer, data, expected)
        if self.verdict != Verdict.ACCEPTED:
            return bytes([self.verdict]) + bytes(PROOF_SIZE)
        self.agreement = Agreement(self._peer.ends, self._peer.frame_bytes)
        return bytes([self.verdict]) + self._proof(Role.SERVER, self._peer)

    def _judge(self, peer: _Hello, proof: bytes, expected: Collection[LinkEnds]) -> Verdict:
        """The token first: a stranger is told no more."""
        try:
            check_proof(proof, self._proof(Role.CLIENT, peer))
        except WrongProof:
            return Verdict.WRONG_TOKEN
        if peer.version != VERSION:
            return Verdict.OTHER_VERSION
        if peer.ends in expected:
            return Verdict.ACCEPTED
        stages = {(ends.source, ends.target) for ends in expected}
        return Verdict.OTHER_EPOCH if (peer.ends.source, peer.ends.target) in stages else Verdict.UNKNOWN_STAGES

    def _proof(self, role: Role, peer: _Hello) -> bytes:
        return proof_of(role, self._side.token, peer.nonce, self._side.nonce, transcript_of(self._said))


def refused(verdict: Verdict) -> LinkRefused:
    return LinkRefused(f"the other side refuses the link: {_WORDS[verdict]}")


def _verdict_of(number: int) -> Verdict:
    try:
        return Verdict(number)
    except ValueError as error:
        raise LinkFault(f"no greeting ends with {number}") from error


def _hello_bytes(side: Side, ends: LinkEnds) -> bytes:
    return _HELLO.pack(_MAGIC, VERSION, ends.source, ends.target, ends.epoch, side.frame_bytes, side.nonce)


def _read_hello(data: bytes) -> _Hello:
    magic, version, source, target, epoch, frame_bytes, nonce = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise LinkFault("what connected is no stage")
    if not 0 < frame_bytes <= PIECE_MOST:
        raise LinkFault(f"no side takes frames of {frame_bytes} bytes")
    return _Hello(LinkEnds(source, target, epoch), frame_bytes, nonce, version)
