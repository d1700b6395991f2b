"""Orders of lending: which blocks of whose cache lie with whom. Values on the control link, between steps only.

    head                         lender's worker             holder's worker
      Lend ->                      <- Done                                      (room is there, the holder is awaited)
      Borrow ->                                                <- Done          (it has come; blocks can be used)
      MoveToHost ->                                            <- Done, or Failed: nothing has moved
      Repay ->                                                 <- Done          (its blocks are nowhere)
      TakeBack ->                  <- Done                                      (the lender's memory is its own again)

Invariants as of `orders`; each names the epoch that it belongs to, and is refused in any other. Pure. Must not know
links or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpu_node.pipeline.ends import LinkEnds
from gpu_node.pipeline.order_codec import OrderCodec
from gpu_node.pipeline.orders import TO_HEAD, TO_WORKER, AnyPlace, LayerCache

# Of stage numbers these are stages as lenders and holders, so that no link of a ring is taken for one of theirs.
LENDING = 0x4000
STAGE_MOST = 0x3FFF


@dataclass(frozen=True, slots=True)
class Lend:
    """Room for the blocks `first` to `behind` (excluded) of the stage `holder`, which look like this."""

    number: int
    epoch: int
    lease: int
    holder: int
    first: int
    behind: int
    block_tokens: int
    dtype: Literal["float32", "bfloat16", "float16"]
    layers: tuple[LayerCache, ...]


@dataclass(frozen=True, slots=True)
class Borrow:
    """Use that room from now on; `place` is the data gate of the lender's worker."""

    number: int
    epoch: int
    lease: int
    lender: int
    first: int
    behind: int
    place: AnyPlace


@dataclass(frozen=True, slots=True)
class MoveToHost:
    """Bring the lease's blocks to host memory; where that takes longer, nothing has moved."""

    number: int
    epoch: int
    lease: int
    within_seconds: float


@dataclass(frozen=True, slots=True)
class Repay:
    number: int
    epoch: int
    lease: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    number: int
    epoch: int
    lease: int
    holder: int


LENDING_ORDERS: tuple[type, ...] = (Lend, Borrow, MoveToHost, Repay, TakeBack)
CODEC = OrderCodec((*TO_WORKER, *TO_HEAD, *LENDING_ORDERS))


def lend_ends(holder: int, lender: int, epoch: int) -> LinkEnds:
    """Of the link over which a holder asks its lender; the holder connects."""
    if not 0 <= min(holder, lender) <= max(holder, lender) <= STAGE_MOST:
        raise ValueError(f"stages are counted from 0 to {STAGE_MOST}, not {holder} and {lender}")
    return LinkEnds(LENDING | holder, LENDING | lender, epoch)
