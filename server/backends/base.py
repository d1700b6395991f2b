"""The interface between dispatch and the nodes: one backend per kind of node, one stream per attempt.

A backend translates: our calls to the node's bytes, the node's answers to events, every foreign exception to a
`NodeError`. It keeps no state about nodes, decides nothing and never retries.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from server.errors import NodeRefused
from server.exchange import Begun, Message, NodeEvent, Operation
from server.nodes import NodeSpec, ProbeReport
from server.patience import Patience

__all__ = ["Backend", "Call", "Patience", "encoded"]


@dataclass(frozen=True, slots=True)
class Call:
    """What one node is asked, in Ollama's terms (see `exchange.AskRequest.fields`).

    `continues` says that the last message is the beginning of the very answer wanted: Ollama and our own node take it
    so or not by template (dispatch has checked), kind openai needs to be told. `begun` is how far another node has
    come with the answer to this very call; only kind relay is ever asked so.
    """

    operation: Operation
    model: str  # the name as that node spells it
    messages: Sequence[Message] = ()
    prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    begun: Begun | None = None


class Backend(Protocol):
    """One kind of node. Whatever a node or a request says, all methods raise only `NodeError`s (and CancelledError)."""

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        """Ask what is there, without generating anything and without loading a model."""
        ...

    def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Sequence[NodeEvent], None]:
        """Run the call. Yields the events of each network read together, last of all one `NodeDone`.

        Closing the iterator (aclose) or cancelling it closes the connection, so that the node stops at once.
        A stream that ends without its `NodeDone` raises `NodeBroken`.
        """
        ...

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        """The prompt text the node's template makes of the call's messages, nothing generated."""
        ...

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        """The node's own description of a model, in the shape of Ollama's /api/show."""
        ...

    async def aclose(self) -> None: ...


def encoded(value: Any) -> bytes:
    """A part of a request as JSON. Raises NodeRefused: not all that was read is shallow enough to be written again."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as problem:
        raise NodeRefused(f"the request cannot be passed on: {problem}", 400) from problem
