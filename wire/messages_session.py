"""Messages about the connection itself: who is there, is it alive, what went wrong, why it ends.

Invariants: all but ACK fit `HANDSHAKE_PAYLOAD`; a proof is never the token. Must not know states or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated

from wire.kinds import Choice, Flag, Listing, Octets, Perhaps, Signed, Text, Unsigned
from wire.scalars import NamedValues, Table

__all__ = [
    "CAPABILITIES",
    "CAPABILITY_BYTES",
    "DETAILS",
    "ERROR_TEXT_BYTES",
    "NAME_BYTES",
    "NONCE_BYTES",
    "PROOF_BYTES",
    "SESSION_KEY_BYTES",
    "Ack",
    "Cancel",
    "Capabilities",
    "Error",
    "ErrorCode",
    "Goodbye",
    "GoodbyeReason",
    "Hello",
    "Name",
    "Ping",
    "Pong",
    "SignalDbm",
    "Welcome",
]

NONCE_BYTES = 32  # nobody can make a nonce come twice
PROOF_BYTES = 32  # SHA-256
SESSION_KEY_BYTES = 32  # knowing it is owning the session, so it cannot be guessed
NAME_BYTES = 128
CAPABILITIES = 32
CAPABILITY_BYTES = 32
ERROR_TEXT_BYTES = 1024
DETAILS = 32

Name = Annotated[str, Text(NAME_BYTES)]
Capabilities = Annotated[tuple[str, ...], Listing(Text(CAPABILITY_BYTES, least=1), CAPABILITIES)]
SignalDbm = Annotated[int | None, Perhaps(Signed(-127, 0))]


class ErrorCode(IntEnum):
    """Below 64: faults of the protocol, after which the connection closes. From 64: of one request, on its stream."""

    UNKNOWN_VERSION = 1
    MALFORMED_FRAME = 2
    BAD_CHECKSUM = 3
    BAD_SEQUENCE = 4
    ILLEGAL_MOVE = 5
    TOO_LARGE = 6
    CREDIT_EXCEEDED = 7
    BAD_PAYLOAD = 8
    WRONG_PROOF = 9
    CUT_SHORT = 10
    INTERNAL = 64
    BAD_REQUEST = 65
    UNSUPPORTED = 66
    MODEL_NOT_FOUND = 67
    MODEL_FAILED = 68
    CONTEXT_EXCEEDED = 69
    BUSY = 70
    STOPPING = 71
    NO_ROOM = 72
    GENERATION_FAILED = 73
    DEADLINE_EXCEEDED = 74
    CANCELLED = 75
    UNKNOWN_HANDLE = 76
    SESSION_GONE = 77
    DIGEST_MISMATCH = 78
    STORE_REFUSED = 79


class GoodbyeReason(IntEnum):
    """Why the connection ends. FINISHED, IDLE and UNWELCOME free the session at once, the others keep it for its
    grace."""

    FINISHED = 1
    STOPPING = 2
    IDLE = 3
    FAULT = 4
    REPLACED = 5
    UNWELCOME = 6


@dataclass(frozen=True, slots=True)
class Hello:
    """The client's first word; sent again with the proof when the node asks for one."""

    versions: Annotated[tuple[int, ...], Listing(Unsigned(15), 16, least=1)]
    name: Name
    nonce: Annotated[bytes, Octets(NONCE_BYTES, least=NONCE_BYTES)]
    capabilities: Capabilities = ()
    proof: Annotated[bytes, Octets(PROOF_BYTES)] = b""
    session_key: Annotated[bytes, Octets(SESSION_KEY_BYTES)] = field(default=b"", repr=False)  # never in a log
    signal_dbm: SignalDbm = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The node's answer: a challenge in a frame without END, the session in one with it."""

    version: Annotated[int, Unsigned(15)]
    name: Name
    nonce: Annotated[bytes, Octets(NONCE_BYTES, least=NONCE_BYTES)]
    capabilities: Capabilities = ()
    proof: Annotated[bytes, Octets(PROOF_BYTES)] = b""
    session_key: Annotated[bytes, Octets(SESSION_KEY_BYTES)] = field(default=b"", repr=False)  # never in a log
    resumed: Annotated[bool, Flag()] = False
    node_id: Annotated[bytes, Octets(16)] = b""
    incarnation: Annotated[int, Unsigned()] = 0
    idle_seconds: Annotated[int, Unsigned((1 << 32) - 1)] = 0
    grace_seconds: Annotated[int, Unsigned((1 << 32) - 1)] = 0


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for the same bytes back."""

    echo: Annotated[bytes, Octets(32)] = b""
    signal_dbm: SignalDbm = None


@dataclass(frozen=True, slots=True)
class Pong:
    """The payload of the PING as it was."""

    echo: Annotated[bytes, Octets(32)] = b""
    signal_dbm: SignalDbm = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends the work on this stream; its last message is ERROR with CANCELLED, unless it had ended already."""


@dataclass(frozen=True, slots=True)
class Error:
    """What went wrong, for programs and for people."""

    code: Annotated[ErrorCode, Choice(ErrorCode, otherwise=ErrorCode.INTERNAL)]
    text: Annotated[str, Text(ERROR_TEXT_BYTES)] = ""
    retry_after_ms: Annotated[int | None, Perhaps(Unsigned((1 << 32) - 1))] = None
    details: Annotated[Table, NamedValues(DETAILS)] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last frame of a side."""

    reason: Annotated[GoodbyeReason, Choice(GoodbyeReason, otherwise=GoodbyeReason.FAULT)]
    text: Annotated[str, Text(ERROR_TEXT_BYTES)] = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: how many bytes are there now, or were given back; for each file of an offer, how many are held."""

    amount: Annotated[int, Unsigned()] = 0
    held: Annotated[tuple[int, ...], Listing(Unsigned(), 4096)] = ()
