"""Every error of the protocol; who is to blame is in the type.

    WireError
    |-- LocalError               our side misused the package: a defect of the caller, nothing was sent
    |   |-- IllegalSend          the state table has no such move for us now
    |   |-- QueueFull            more waits to be sent than may wait: wait for the stream's room
    |   `-- OutOfBounds          a value that no frame or message can carry
    `-- RemoteError              the peer broke the protocol: tell it `code`, close the connection
        |-- UnknownVersion       a frame of a version that we do not speak
        |-- MalformedFrame       a header that no version of ours means
        |-- BadChecksum          bytes changed on the way
        |-- BadSequence          a frame lost, repeated or out of order
        |-- IllegalReceive       the state table has no such move for the peer now
        |-- TooLarge             more than a limit allows, refused before room was made for it
        |-- CreditExceeded       the peer sent what it had no credit for, or gave more than can be counted
        |-- BadPayload           the payload is not what its type says, or cannot be decompressed
        |-- WrongProof           the peer does not know the token
        `-- CutShort             the connection ended in the middle of something

Only a RemoteError may leave the receive path. This module knows nothing of frames.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

__all__ = [
    "BadChecksum",
    "BadPayload",
    "BadSequence",
    "CreditExceeded",
    "CutShort",
    "FaultCode",
    "IllegalReceive",
    "IllegalSend",
    "LocalError",
    "MalformedFrame",
    "OutOfBounds",
    "QueueFull",
    "RemoteError",
    "TooLarge",
    "UnknownVersion",
    "WireError",
    "WrongProof",
]


class FaultCode(IntEnum):
    """What an ERROR frame on stream 0 says before the connection is closed. Numbers below 64 are the protocol's own."""

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


class WireError(Exception):
    """Root of the tree; never raised itself."""


class LocalError(WireError):
    """Our own side asked for what the protocol does not allow."""


class IllegalSend(LocalError):
    """Nothing of the kind may be sent in this state."""


class QueueFull(LocalError):
    """The stream has as much waiting as it may; `Connection.room` says when there is room again."""


class OutOfBounds(LocalError):
    """A value that its field cannot hold."""


class RemoteError(WireError):
    """The peer is at fault and the connection is over; `code` is what to tell it."""

    code: ClassVar[FaultCode] = FaultCode.MALFORMED_FRAME


class UnknownVersion(RemoteError):
    code = FaultCode.UNKNOWN_VERSION


class MalformedFrame(RemoteError):
    code = FaultCode.MALFORMED_FRAME


class BadChecksum(RemoteError):
    code = FaultCode.BAD_CHECKSUM


class BadSequence(RemoteError):
    code = FaultCode.BAD_SEQUENCE


class IllegalReceive(RemoteError):
    code = FaultCode.ILLEGAL_MOVE


class TooLarge(RemoteError):
    code = FaultCode.TOO_LARGE


class CreditExceeded(RemoteError):
    code = FaultCode.CREDIT_EXCEEDED


class BadPayload(RemoteError):
    code = FaultCode.BAD_PAYLOAD


class WrongProof(RemoteError):
    code = FaultCode.WRONG_PROOF


class CutShort(RemoteError):
    code = FaultCode.CUT_SHORT
