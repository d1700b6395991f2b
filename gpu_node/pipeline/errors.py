"""What can become of a link; each one ends it, and nothing is sent or received on it any more.

    NodeError
    `-- LinkError
        |-- LinkClosed           this side or the other has closed it, or the other side's process has died
        |-- LinkSilent           the other side is there and says nothing: frozen, or cut off
        `-- LinkFault            what came is no frame of this link, or not of its epoch
            `-- LinkRefused      the two sides did not agree at the beginning: token, stages, epoch or version

Whoever supervises stages plans anew after each of them; only a refusal is somebody's mistake in settings.
"""

from __future__ import annotations

from gpu_node.errors import NodeError


class LinkError(NodeError):
    """Root of the tree; never raised itself."""


class LinkClosed(LinkError):
    """`in_frame`: the other side ended in the middle of one."""

    def __init__(self, message: str, in_frame: bool = False) -> None:
        super().__init__(message)
        self.in_frame = in_frame


class LinkSilent(LinkError):
    """Nothing came for longer than heartbeats allow, or nothing but heartbeats for longer than the caller waits."""


class LinkFault(LinkError):
    """The other side broke the rules."""


class LinkRefused(LinkFault):
    """`reason` is one of `handshake.Verdict`'s names, in words."""
