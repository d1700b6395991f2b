"""The talk before any request, either side: who is there, what both can do, and proof of the token by both.

Sans-IO over the payloads of HELLO and WELCOME; which may come when is `Connection`'s. Invariants: who has a token
accepts nobody without a proof of it, so nobody on the way can talk a side out of it; nothing is believed of a payload
that no proof covers; what was offered first is what was offered in the end. Randomness comes from the caller. Must not
know sessions, frames or sockets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import cast

from wire.auth import PROOF_SIZE, check_proof, proof_of, transcript_of
from wire.errors import BadPayload, IllegalReceive, IllegalSend, OutOfBounds, UnknownVersion, WrongProof
from wire.frames import VERSION, Buffer, FrameType
from wire.messages import decode_message, encode_message, without_proof
from wire.messages_session import SESSION_KEY_BYTES, Hello, Welcome
from wire.state import Role

__all__ = ["Accepted", "Challenge", "ClientHandshake", "ClientTerms", "ServerHandshake", "ServerTerms"]


@dataclass(frozen=True, slots=True)
class ClientTerms:
    """What a client says of itself. `session_key` is that of a session to come back to."""

    name: str
    token: str | None = field(default=None, repr=False)
    capabilities: tuple[str, ...] = ()
    session_key: bytes = field(default=b"", repr=False)
    signal_dbm: int | None = None

    def __post_init__(self) -> None:
        _check_token(self.token)


@dataclass(frozen=True, slots=True)
class ServerTerms:
    """What a node says of itself; without a `token` it is open."""

    name: str
    token: str | None = field(default=None, repr=False)
    capabilities: tuple[str, ...] = ()
    node_id: bytes = b""
    incarnation: int = 0
    idle_seconds: int = 0
    grace_seconds: int = 0

    def __post_init__(self) -> None:
        _check_token(self.token)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send `payload` in a WELCOME without END and wait for the next HELLO."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The client is who it must be; `capabilities` are those of both sides. Answer with `ServerHandshake.welcome`."""

    hello: Hello
    capabilities: tuple[str, ...] = ()


class ClientHandshake:
    """`nonce`: 32 random bytes, new for every connection."""

    def __init__(self, terms: ClientTerms, nonce: bytes) -> None:
        self._terms, self._nonce = terms, nonce
        self._said: list[bytes] = []  # payloads so far, their proofs emptied
        self._challenge: Welcome | None = None
        self.welcome: Welcome | None = None

    def begin(self) -> bytes:
        """The payload of the first HELLO. Raises OutOfBounds for terms that no HELLO can carry."""
        if self._said:
            raise IllegalSend("the handshake has begun")
        return self._say(self._hello())

    def receive(self, payload: Buffer, ends: bool) -> bytes | None:
        """Takes a WELCOME; returns the payload of the HELLO to send, or None when `welcome` is there.

        Raises WrongProof when the node does not prove our token, or wants one and we have none; UnknownVersion;
        BadPayload for a WELCOME that contradicts what was said; IllegalReceive for one that was not waited for.
        """
        if not self._said or self.welcome is not None or (self._challenge is not None and not ends):
            raise IllegalReceive("a WELCOME that nobody waits for")
        welcome = cast(Welcome, decode_message(FrameType.WELCOME, payload))
        self._check(welcome)
        self._said.append(without_proof(FrameType.WELCOME, payload))
        if not ends:
            return self._prove(welcome)
        if self._terms.token is not None:
            self._check_node(welcome, self._terms.token)
        self.welcome = welcome
        return None

    def _hello(self, proof: bytes = b"") -> Hello:
        terms = self._terms
        known = (terms.capabilities, proof, terms.session_key, terms.signal_dbm)
        return Hello((VERSION,), terms.name, self._nonce, *known)

    def _say(self, hello: Hello) -> bytes:
        payload = _payload(hello)
        self._said.append(without_proof(FrameType.HELLO, payload))
        return payload

    def _check(self, welcome: Welcome) -> None:
        if welcome.version != VERSION:
            raise UnknownVersion(f"the node chose version {welcome.version}, which was not offered")
        if not set(welcome.capabilities) <= set(self._terms.capabilities):
            raise BadPayload("the node agrees to capabilities that were not offered")
        if welcome.resumed and not self._terms.session_key:
            raise BadPayload("the node resumes a session that was not asked for")
        if self._challenge is not None and welcome.nonce != self._challenge.nonce:
            raise BadPayload("the node's nonce is another one than in its challenge")

    def _prove(self, challenge: Welcome) -> bytes:
        if self._terms.token is None:
            raise WrongProof("the node wants a token and there is none")
        self._challenge = challenge
        # The proof covers the HELLO that carries it: first as it will be, then with the proof in its place.
        self._say(self._hello(bytes(PROOF_SIZE)))
        proof = _proof(Role.CLIENT, self._terms.token, self._nonce, challenge.nonce, self._said)
        return _payload(self._hello(proof))

    def _check_node(self, welcome: Welcome, token: str) -> None:
        if self._challenge is None:
            raise WrongProof("the node asked for no token, so it cannot be the one whose token this is")
        check_proof(welcome.proof, _proof(Role.SERVER, token, self._nonce, welcome.nonce, self._said))


class ServerHandshake:
    """`nonce`: 32 random bytes, new for every connection."""

    def __init__(self, terms: ServerTerms, nonce: bytes) -> None:
        self._terms, self._nonce = terms, nonce
        self._said: list[bytes] = []
        self._first: Hello | None = None
        self._accepted: Accepted | None = None

    def receive(self, payload: Buffer) -> Challenge | Accepted:
        """Takes a HELLO. Raises WrongProof, UnknownVersion, BadPayload, or IllegalReceive for one HELLO too many."""
        if self._accepted is not None:
            raise IllegalReceive("a HELLO after the handshake")
        hello = cast(Hello, decode_message(FrameType.HELLO, payload))
        self._said.append(without_proof(FrameType.HELLO, payload))
        if self._first is None:
            return self._greet(hello)
        if dataclasses.replace(hello, proof=b"") != self._first:
            raise BadPayload("the second HELLO differs from the first in more than its proof")
        assert self._terms.token is not None, "an open node challenges nobody"
        expected = _proof(Role.CLIENT, self._terms.token, hello.nonce, self._nonce, self._said)
        check_proof(hello.proof, expected)
        return self._accept(hello)

    def welcome(self, session_key: bytes, resumed: bool) -> bytes:
        """The payload of the WELCOME with END, with the node's own proof where there is a token."""
        if self._accepted is None:
            raise IllegalSend("nobody was accepted yet")
        if len(session_key) != SESSION_KEY_BYTES:
            raise OutOfBounds(f"a session key has {SESSION_KEY_BYTES} bytes")
        said = dataclasses.replace(self._welcome(self._accepted.capabilities), session_key=session_key, resumed=resumed)
        token, hello = self._terms.token, self._accepted.hello
        if token is None:
            return _payload(said)
        blank = _payload(dataclasses.replace(said, proof=bytes(PROOF_SIZE)))
        transcript = [*self._said, without_proof(FrameType.WELCOME, blank)]
        proof = _proof(Role.SERVER, token, hello.nonce, self._nonce, transcript)
        return _payload(dataclasses.replace(said, proof=proof))

    def _greet(self, hello: Hello) -> Challenge | Accepted:
        if VERSION not in hello.versions:
            raise UnknownVersion(f"the client speaks {hello.versions} and not {VERSION}")
        if hello.proof:
            raise BadPayload("a proof before there was a challenge")
        self._first = hello
        if self._terms.token is None:
            return self._accept(hello)
        payload = _payload(self._welcome(self._agreed(hello)))
        self._said.append(payload)
        return Challenge(payload)

    def _accept(self, hello: Hello) -> Accepted:
        self._accepted = Accepted(hello, self._agreed(hello))
        return self._accepted

    def _agreed(self, hello: Hello) -> tuple[str, ...]:
        return tuple(each for each in self._terms.capabilities if each in hello.capabilities)

    def _welcome(self, capabilities: tuple[str, ...]) -> Welcome:
        terms = self._terms
        return Welcome(
            VERSION, terms.name, self._nonce, capabilities, node_id=terms.node_id, incarnation=terms.incarnation,
            idle_seconds=terms.idle_seconds, grace_seconds=terms.grace_seconds,
        )  # fmt: skip


def _check_token(token: str | None) -> None:
    if token == "":  # would be no proof of anything; None is what an open side has
        raise OutOfBounds("an empty token")


def _payload(message: Hello | Welcome) -> bytes:
    return b"".join(encode_message(message))


def _proof(role: Role, token: str, client_nonce: bytes, server_nonce: bytes, said: list[bytes]) -> bytes:
    return proof_of(role, token, client_nonce, server_nonce, transcript_of(said))
