"""Every bound of frames, streams and credit, each with its reason; sizes are bytes.

A bound is checked before room is made for what it bounds. The fixed numbers are part of the protocol: both sides and
every language have the same. `Limits` is what one side chooses for itself. This module knows nothing of what the
bytes mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.errors import OutOfBounds

__all__ = [
    "FRAME_COST",
    "HANDSHAKE_PAYLOAD",
    "INITIAL_CONNECTION_CREDIT",
    "INITIAL_STREAM_CREDIT",
    "LARGEST_CREDIT",
    "LARGEST_PAYLOAD",
    "LARGEST_STREAM_ID",
    "RESERVED_PART",
    "SMALLEST_CUT",
    "Limits",
]

# A frame holds the line while it is sent: 1 MiB is 84 ms of 100 Mbit/s, and what a frame costs is already nothing.
LARGEST_PAYLOAD = 1 << 20
# A peer that has proved nothing yet makes us keep no more than a page.
HANDSHAKE_PAYLOAD = 4096
# 16 bits in the header. Numbers are used again, so this bounds what runs at once and not what ever ran.
LARGEST_STREAM_ID = 0xFFFF
# What a frame takes of its receiver besides its payload: the objects that stand for it. Sending empty ones is not free.
FRAME_COST = 256
# Some hundred frames of tokens: most streams end before any credit has to travel.
INITIAL_STREAM_CREDIT = 64 << 10
# One full frame and some talk, before the first credit arrives.
INITIAL_CONNECTION_CREDIT = 2 << 20
# Tensor bytes that credit does not cover are cut, but not into crumbs: below this a frame goes over its credit instead.
SMALLEST_CUT = 4096
# Of the connection's window this part (1 / 4) is for streams that are not widened.
RESERVED_PART = 4
# Fits a signed 32-bit number, which every language has.
LARGEST_CREDIT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side keeps for one connection. Most hold a few KiB, one that moves tensors the two windows and queues
    of 16 MiB; only with all its streams at a standstill it is a share for each on top.
    """

    # What the peer may have under way beyond what was consumed: 16 MiB is 1 Gbit/s at a round trip of 130 ms.
    connection_window: int = 16 << 20
    # Most that a bulk stream gets of it: four frames keep the line busy.
    bulk_window: int = 4 << 20
    # What each open stream may hold, or have waiting, without counting against the others: what it begins with, and a
    # frame that went over it. So any number of streams that nobody reads leave the connection's window alone.
    stream_share: int = INITIAL_STREAM_CREDIT + (8 << 10)
    # More streams than any client runs at once, few enough that their records stay below 1 MiB.
    streams: int = 1024
    # What one stream may have waiting: enough to keep the line busy, so one writer cannot fill the memory.
    stream_queue: int = 4 * (LARGEST_PAYLOAD + FRAME_COST)
    # All streams together, but for the one frame that each may have in any case.
    connection_queue: int = 16 << 20
    # Frames that need no credit (PONG, ERROR, CANCEL) and wait because the peer does not read: the end of every stream
    # at once, and as much again. More is a flood.
    control_frames: int = 2048

    def __post_init__(self) -> None:
        if not INITIAL_CONNECTION_CREDIT <= self.connection_window <= LARGEST_CREDIT:
            raise OutOfBounds(f"the connection's window must be {INITIAL_CONNECTION_CREDIT} to {LARGEST_CREDIT} bytes")
        if not 1 <= self.streams <= LARGEST_STREAM_ID:
            raise OutOfBounds(f"streams must be 1 to {LARGEST_STREAM_ID}")
        if min(self.stream_queue, self.connection_queue) < LARGEST_PAYLOAD + FRAME_COST or self.control_frames < 1:
            raise OutOfBounds("a queue must hold at least one frame")
