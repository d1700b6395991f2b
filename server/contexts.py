"""How much context a model has at a node, and which `num_ctx` it is asked for. Pure but for the pins it keeps.

Another `num_ctx` makes Ollama load the model anew and forget every conversation, so a loaded model keeps what it has.
Only more than every Ollama's default is ever asked for, from a model that is not loaded yet; then the same goes with
every request to it: that is a pin. One whose load failed is taken back, or a wrong number would break a node for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.exchange import AskRequest
from server.roster import Seat

DEFAULT_CONTEXT = 4096  # what an Ollama gives at least, by its release notes
OLD_DEFAULT_CONTEXT = 2048
LARGER_CONTEXT_SINCE = (0, 6, 7)


def context_length(seat: Seat) -> int | None:
    """What the model's context is, as we had it loaded or as the node tells; None: not loaded, or nobody knows."""
    pinned = seat.memory.pinned_contexts.get(seat.model)
    if pinned is not None:  # also before a probe has seen it loaded: a second request must not take it for free
        return pinned
    resident = seat.node.resident.get(seat.model)
    return None if resident is None else resident.context_length


def trained_context(seat: Seat) -> int | None:
    """What the model was trained for, where the node lists it: more than that cannot be loaded."""
    details = seat.copy.listing.get("details")
    length = details.get("context_length") if isinstance(details, Mapping) else None
    return length if isinstance(length, int) and length > 0 else None


def largest_context(seat: Seat) -> int | None:
    """The most that a request can get at this seat now; None where nobody knows a limit."""
    return context_length(seat) or trained_context(seat)


def fits_context(seat: Seat, wanted: int) -> bool:
    length = largest_context(seat)
    return length is None or length >= wanted


def default_context(seat: Seat) -> int:
    """What the node gives at least when it is not told; only a larger `num_ctx` is worth asking for."""
    report = seat.node.report
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", report.version) if report is not None else None
    ours = report is not None and report.continues_assistant
    if found and not ours and tuple(map(int, found.groups())) < LARGER_CONTEXT_SINCE:
        return OLD_DEFAULT_CONTEXT
    return DEFAULT_CONTEXT


def pin_context(seat: Seat, request: AskRequest) -> int | None:
    """Fix the model's context there, if this request is the first to need more. Returns the new pin."""
    wanted = request.options.get("num_ctx")
    if not isinstance(wanted, int) or seat.node.spec.kind != "ollama":
        return None
    if seat.model in seat.memory.pinned_contexts or wanted <= default_context(seat):
        return None
    # a model that was loaded with more keeps it: without a word, a node goes back to its own default
    seat.memory.pinned_contexts[seat.model] = pin = max(wanted, context_length(seat) or 0)
    return pin


def unpin_context(seat: Seat, pin: int | None) -> None:
    """The request that asked for it did not get its answer: nobody knows what is loaded now."""
    if pin is not None and seat.memory.pinned_contexts.get(seat.model) == pin:
        del seat.memory.pinned_contexts[seat.model]


def options_for(seat: Seat, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options as this node gets them: its own fixed context in the place of the one wished for."""
    if seat.node.spec.kind != "ollama":
        return options  # such a node has one context, and says so itself when it is asked for another
    pinned = seat.memory.pinned_contexts.get(seat.model)
    if pinned is None and "num_ctx" not in options:
        return options
    rest = {name: value for name, value in options.items() if name != "num_ctx"}
    return rest if pinned is None else {**rest, "num_ctx": pinned}
