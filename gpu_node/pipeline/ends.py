"""Between which stages a link is, and how it behaves. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from wire.tensors import PIECE_MOST

# As a stage number: not one of the stages, but who gives them work.
HEAD = 0xFFFF
EPOCH_MOST = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """`frame_bytes` is the largest frame that this side receives; two buffers of that size are made at once."""

    frame_bytes: int = 8 << 20
    beat_seconds: float = 0.1
    silence_seconds: float = 0.4  # three lost beats are no death, and half a second is promised

    def __post_init__(self) -> None:
        if not 0 < self.beat_seconds < self.silence_seconds or not 0 < self.frame_bytes <= PIECE_MOST:
            raise ValueError("heartbeats are more frequent than the silence that means death, and a frame has bytes")


USUAL = LinkSettings()


@dataclass(frozen=True, slots=True)
class LinkEnds:
    """From which stage to which, in which plan. Both sides name it the same."""

    source: int
    target: int
    epoch: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.source <= HEAD and 0 <= self.target <= HEAD and 0 <= self.epoch <= EPOCH_MOST):
            raise ValueError(f"{self.source} to {self.target} in epoch {self.epoch} is no link")
