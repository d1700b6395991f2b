"""Whether a phone that comes by a known id is that phone: copies of one phone, and strangers with its id. Pure.

An id is no secret, and phones that were set up from one backup share id and token. Whoever answers at its place, as
the last probe found, is not moved away by another's word. Must not know files, tokens or HTTP.
"""

from __future__ import annotations

from collections import OrderedDict

from server.errors import RequestInvalid
from server.nodes import Node, NodeId, NodeStatus
from server.phones.registration import place_of

RETURN_SECONDS = 300.0  # a phone that left an address and comes back within this time may be two phones
MOST_LEFT = 1024


class Sightings:
    """Where phones have been. `now`: seconds of one clock."""

    def __init__(self) -> None:
        self._left: OrderedDict[tuple[NodeId, str], float] = OrderedDict()

    def moved(self, phone_id: NodeId, host: str, now: float) -> None:
        """It is at `host` no more."""
        self._left[phone_id, host] = now
        self._left.move_to_end((phone_id, host))
        if len(self._left) > MOST_LEFT:
            self._left.popitem(last=False)

    def refuse_copy(self, node: Node, host: str, now: float) -> None:
        """Raises RequestInvalid (409) where one id comes from two places in turn and answers at the other."""
        left_at = self._left.get((node.id, host))
        if left_at is None or not 0 <= now - left_at < RETURN_SECONDS or not answers_elsewhere(node, host):
            return
        raise _taken(node)


def refuse_stranger(node: Node, host: str) -> None:
    """For who brings an invitation, not the phone's own token. Raises RequestInvalid (409) while the phone answers."""
    if answers_elsewhere(node, host):
        raise _taken(node)


def answers_elsewhere(node: Node, host: str) -> bool:
    """As far as the last probe tells."""
    return node.status is NodeStatus.READY and not node.failed_probes and place_of(node.spec) != host


def _taken(node: Node) -> RequestInvalid:
    """The phone shows the message, so what helps there is in it."""
    return RequestInvalid(
        f"a phone with the same id answers at {node.spec.address}; if this one is a copy of it,"
        " remove ~/mobile-llm/id and ~/mobile-llm/phone_token here, and join anew",
        field="id",
        hint=f"if it is the same phone, take the old entry out first: potluck phones remove '{node.name}'",
        status=409,
    )
