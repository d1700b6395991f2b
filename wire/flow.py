"""Credit: how much a sender may still send, and what its receiver gives back.

A frame costs its payload as it was before compression, and FRAME_COST on top. It may be sent while there is any
credit at all, on its stream and on the connection; both may fall below zero by one frame, so every legal frame can be
sent sooner or later however small a window is. What a receiver holds therefore never exceeds its window and one
frame. HTTP/2 (RFC 9113, 5.2) is the model; counting the frame itself bounds what empty frames can make a receiver
keep. Nothing here knows streams.
"""

from __future__ import annotations

from wire.errors import CreditExceeded, OutOfBounds
from wire.limits import FRAME_COST, LARGEST_CREDIT

__all__ = ["GivenCredit", "OwnCredit", "SharedCredit", "cost_of"]


def cost_of(size: int) -> int:
    """The credit that a frame with a payload of `size` bytes takes, before compression."""
    return size + FRAME_COST


class OwnCredit:
    """What the peer lets us send."""

    __slots__ = ("left",)

    def __init__(self, initial: int) -> None:
        self.left = initial

    @property
    def may_send(self) -> bool:
        return self.left > 0

    def spend(self, cost: int) -> None:
        assert self.left > 0, "sent without credit"
        self.left -= cost

    def add(self, granted: int) -> None:
        """Raises CreditExceeded for a grant of nothing or beyond what a side may ever have."""
        if granted <= 0 or self.left + granted > LARGEST_CREDIT:
            raise CreditExceeded(f"{granted} bytes of credit on top of {self.left}")
        self.left += granted


class GivenCredit:
    """What we let the peer send: `left` of it is still its own, `held` is here and not consumed yet."""

    __slots__ = ("held", "left", "window")

    def __init__(self, initial: int) -> None:
        self.left = self.window = initial
        self.held = 0

    def check(self) -> None:
        """Raises CreditExceeded when the peer may send no frame now; called before room is made for its payload."""
        if self.left <= 0:
            raise CreditExceeded("a frame without credit")

    def take(self, cost: int) -> None:
        """A frame has arrived."""
        self.left -= cost
        self.held += cost

    def consume(self, cost: int) -> bool:
        """The frame needs no room of ours any more. True when a grant is due."""
        held = self.held
        if cost > held:
            raise OutOfBounds(f"{cost} bytes are given back, {held} are held")
        self.held = held = held - cost
        return (self.window - held - self.left) * 2 >= self.window

    def widen(self, window: int) -> None:
        """Lets more be under way from now on. A window never shrinks: what is given is given."""
        self.window = max(self.window, min(window, LARGEST_CREDIT))

    def due(self) -> int:
        """What to grant now, and counts it as granted. Half a window at a time, so grants stay few."""
        grant = self.window - self.held - self.left
        if grant * 2 < self.window:
            return 0
        self.left += grant
        return grant


class SharedCredit(GivenCredit):
    """That of a connection: some streams may hold much of it for ever, so grants go by what the others have of it."""

    __slots__ = ()

    @property
    def is_due(self) -> bool:
        free = self.window - self.held
        return self.left * 2 <= free and self.left < free

    def consume(self, cost: int) -> bool:
        super().consume(cost)
        return self.is_due

    def due(self) -> int:
        if not self.is_due:
            return 0
        grant = self.window - self.held - self.left
        self.left += grant
        return grant
