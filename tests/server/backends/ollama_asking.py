"""What the tests of the Ollama backend share: a call, reading a stream to its end, and asking the fake phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.backends.base import Call, Patience
from server.backends.ollama import OllamaBackend
from server.errors import NodeError
from server.exchange import NodeEvent, Token
from server.nodes import NodeId, NodeSpec
from tests.fakes.phone import FakePhone

PATIENCE = Patience(connect=60, first_token=60, between_tokens=60, total=60)
MODEL = "smollm2:135m"
CALL = Call("chat", MODEL, messages=[{"role": "user", "content": "hi"}])


async def read(
    backend: OllamaBackend, spec: NodeSpec, call: Call = CALL, patience: Patience = PATIENCE
) -> tuple[list[NodeEvent], NodeError | None]:
    """All events, and the error that ended them."""
    events: list[NodeEvent] = []
    try:
        async for batch in backend.stream(spec, call, patience):
            events += batch
    except NodeError as error:
        return events, error
    return events, None


def text_of(events: Sequence[NodeEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def spec_of(phone: FakePhone, **fields: Any) -> NodeSpec:
    return NodeSpec(NodeId("p"), "p", "ollama", phone.host, phone.port, **fields)


def ask(phone: FakePhone, **options: Any) -> Call:
    model = phone.settings.models[0].full_name
    return Call("chat", model, messages=[{"role": "user", "content": "hello"}], options={"temperature": 0} | options)
