"""What goes wrong with lent memory.

NodeError
`-- LendingError
    |-- LeaseFault           a lease that contradicts the book, or a message about blocks that nobody lent
    `-- LenderLost           who holds blocks of a stage does not answer any more: they are computed anew
"""

from __future__ import annotations

from gpu_node.errors import NodeError


class LendingError(NodeError):
    """Root of the tree; never raised itself."""


class LeaseFault(LendingError):
    """A mistake on this side of the book, or of whoever asked."""


class LenderLost(LendingError):
    """`lender` is its stage number."""

    def __init__(self, lender: int, reason: str) -> None:
        super().__init__(f"the lender of stage {lender} is gone: {reason}")
        self.lender = lender
