"""What a link has carried so far, as a value and as it is counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Since the link was made. A round trip: sent, and something came back."""

    frames_sent: int = 0
    frames_received: int = 0
    frames_dropped: int = 0  # of an older epoch
    bytes_sent: int = 0  # of tensors, without headers
    bytes_received: int = 0
    beats_sent: int = 0
    beats_received: int = 0
    round_trips: int = 0
    sending_microseconds: int = 0
    receiving_microseconds: int = 0  # from a frame's header to its last byte; waiting for one is nobody's cost


@dataclass(slots=True)
class Counts:
    """Each is written under the lock of its direction."""

    frames_sent: int = 0
    frames_received: int = 0
    frames_dropped: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    beats_sent: int = 0
    beats_received: int = 0
    round_trips: int = 0
    sending_nanoseconds: int = 0
    receiving_nanoseconds: int = 0

    def taken(self) -> LinkCounters:
        return LinkCounters(
            self.frames_sent, self.frames_received, self.frames_dropped, self.bytes_sent, self.bytes_received,
            self.beats_sent, self.beats_received, self.round_trips,
            self.sending_nanoseconds // 1000, self.receiving_nanoseconds // 1000,
        )  # fmt: skip
