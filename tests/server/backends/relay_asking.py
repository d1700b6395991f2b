"""What the tests of the relay backend share: a fake node's entry, a backend that is closed, reading a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from server.backends.base import Call, Patience
from server.backends.relay import RelayBackend
from server.errors import NodeError
from server.exchange import NodeEvent, Token
from server.nodes import NodeId, NodeSpec
from tests.fakes.relay_node import FakeRelayNode
from wire.messages_stats import DeviceRecord, HolderRecord, ModelRecord, ResidentRecord, Stats

PATIENCE = Patience(connect=60, first_token=60, between_tokens=60, total=60)
CALL = Call("chat", "tiny", messages=[{"role": "user", "content": "Paris?"}])
REPORT = Stats(
    (("version", "0.1.0"), ("slots", 32), ("running", 2)),
    (
        ModelRecord(
            "tiny", "sha256:aa11", 1000, "gguf", "llama", "1M", "Q4_0", 1.5, 256, ("completion",),
            (("temperature", 0.25), ("stop", ("<end>",))),
        ),
        ModelRecord("other:1b", "bb22", 2000),
    ),
    (ResidentRecord("tiny", "ready", 256, 1500, 500, 32, 2, 1, 60.0, "cuda:0"), ResidentRecord("gone", "leaving")),
    (DeviceRecord("cuda", "cuda", 10_000, 8000, 2000), DeviceRecord("cpu", "cpu", 20_000, 20_000, 0)),
    (HolderRecord("tiny", "model", 1500, "live"),),
)  # fmt: skip


def spec_of(node: FakeRelayNode, **fields: Any) -> NodeSpec:
    return NodeSpec(NodeId("r"), "r", "relay", node.place.host, node.port, **fields)


@asynccontextmanager
async def relay_backend(**secrets: str) -> AsyncIterator[RelayBackend]:
    backend = RelayBackend(None, secrets)
    try:
        yield backend
    finally:
        await backend.aclose()


async def read(
    backend: RelayBackend, spec: NodeSpec, call: Call = CALL, patience: Patience = PATIENCE
) -> tuple[list[NodeEvent], NodeError | None]:
    """All events, and the error that ended them."""
    events: list[NodeEvent] = []
    try:
        async with aclosing(backend.stream(spec, call, patience)) as batches:
            async for batch in batches:
                events += batch
    except NodeError as error:
        return events, error
    return events, None


def text_of(events: Sequence[NodeEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))
