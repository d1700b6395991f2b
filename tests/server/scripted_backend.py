"""A backend that answers by script: what each node streams, renders and shows is written down by the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.backends.base import Call
from server.errors import NodeError
from server.exchange import NodeEvent
from server.nodes import NodeSpec, ProbeReport
from server.patience import Patience

Batch = Sequence[NodeEvent]
Step = Batch | NodeError


def open_template(call: Call) -> str:
    """A template that leaves a last assistant message open, and repeats it as it is."""
    parts = [f"<{message['role']}>{message.get('content', '')}" for message in call.messages]
    ended = bool(call.messages) and call.messages[-1]["role"] == "assistant"
    return "".join(parts) + ("" if ended else "<assistant>") + call.prompt


def closed_template(call: Call) -> str:
    """A template that closes every message, whoever's it is, and begins a new one."""
    parts = [f"<{message['role']}>{message.get('content', '')}</>" for message in call.messages]
    return "".join(parts) + "<assistant>\n" + call.prompt


def trimming_template(call: Call) -> str:
    """A template that leaves the last message open, but trims it."""
    return open_template(call).rstrip()


@dataclass
class ScriptedBackend:
    """`steps` are what `stream` yields, or raises; what was asked is kept."""

    steps: Sequence[Step] = ()
    template: Callable[[Call], str] = open_template
    shown: Mapping[str, Any] = field(default_factory=dict)
    render_error: NodeError | None = None
    calls: list[Call] = field(default_factory=list)
    rendered: list[tuple[str, Call]] = field(default_factory=list)
    patience: list[Patience] = field(default_factory=list)
    closed: int = 0

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        raise NotImplementedError

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Batch, None]:
        self.calls.append(call)
        self.patience.append(patience)
        try:
            for step in self.steps:
                if isinstance(step, NodeError):
                    raise step
                yield step
        finally:
            self.closed += 1

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        self.rendered.append((spec.id, call))
        if self.render_error is not None:
            raise self.render_error
        return self.template(call)

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        return dict(self.shown)

    async def aclose(self) -> None: ...
