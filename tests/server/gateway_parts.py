"""A gateway without its HTTP surface: registry, seating, failover and dispatcher over fake phones, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from server.answers import Answers
from server.backends import Backends
from server.breaker import BreakerLimits
from server.dispatch import Dispatcher
from server.exchange import AskRequest, CallerId, Done, Event, Failed, RequestId, Token
from server.failover import Failover, FailoverLimits
from server.nodes import NodeId, NodeSpec
from server.observer import RequestRecord
from server.patience import PatienceLimits
from server.registry import NodeListed, NodeProbed, Registry
from server.retry import RetryBudget
from server.routing import STRATEGIES, Policy
from server.seating import Seating, SeatingLimits
from tests.fakes.phone import FakePhone

MODEL = "smollm2:135m"
# No fault of a phone is told by its silence here: the machine may stand still for seconds.
PATIENT = PatienceLimits(
    connect_seconds=60.0,
    first_token_floor_seconds=60.0,
    between_tokens_floor_seconds=60.0,
    load_allowance_seconds=0.0,
    ceiling_seconds=60.0,
)
# Where a phone does fall silent.
QUICK = PatienceLimits(
    connect_seconds=2.0,
    first_token_floor_seconds=1.0,
    between_tokens_floor_seconds=1.0,
    load_allowance_seconds=0.0,
    ceiling_seconds=1.5,  # far above what a busy machine takes for a step, or the fakes would seem to stall
)


class Witness:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.started: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.resumed: list[tuple[str, str]] = []

    def request_finished(self, record: RequestRecord) -> None:
        self.records.append(record)

    def attempt_started(self, node: NodeId, model: str) -> None:
        self.started.append((node, model))

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None:
        self.failures.append((node, reason))

    def answer_resumed(self, node: NodeId, way: str) -> None:
        self.resumed.append((node, way))


@dataclass
class Bench:
    """The parts under test."""

    registry: Registry
    seating: Seating
    dispatcher: Dispatcher
    answers: Answers
    backends: Backends
    witness: Witness
    budget: RetryBudget
    counter: list[int] = field(default_factory=lambda: [0])

    async def list_phone(self, phone: FakePhone, **spec: Any) -> NodeId:
        """The phone joins, as the fleet file and one probe would have it."""
        name = spec.pop("name", f"phone-{len(self.registry.fleet.nodes)}")
        listed = NodeSpec(NodeId(name), name, spec.pop("kind", "ollama"), phone.host, phone.port, **spec)
        self.registry.emit(NodeListed(listed, 0.0))
        await self.probe(listed.id)
        return listed.id

    async def probe(self, node_id: NodeId) -> None:
        node = self.registry.fleet.nodes[node_id]
        report = await self.backends[node.spec.kind].probe(node.spec, 60.0)
        self.registry.emit(NodeProbed(node_id, report, 0.0))

    def request(self, prompt: str = "Tell me about the sea.", **changes: Any) -> AskRequest:
        self.counter[0] += 1
        values: dict[str, Any] = {
            "id": RequestId(f"r{self.counter[0]}"),
            "caller": CallerId("ip:127.0.0.1"),
            "operation": "chat",
            "messages": ({"role": "user", "content": prompt},),
            "options": {"temperature": 0},
        }
        return AskRequest(**{**values, **changes})

    async def ask(self, request: AskRequest) -> Answered:
        events: list[Event] = []
        async with aclosing(self.dispatcher.stream(request)) as batches:
            async for batch in batches:
                events.extend(batch)
        return Answered(events)


@dataclass
class Answered:
    events: Sequence[Event]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token))

    @property
    def done(self) -> Done:
        last = self.events[-1]
        assert isinstance(last, Done), last
        return last

    @property
    def failed(self) -> Failed:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last

    @property
    def terminals(self) -> int:
        return sum(isinstance(event, Done | Failed) for event in self.events)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what a real socket brings about; the time only bounds a failure."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the fakes count, they do not signal
            await asyncio.sleep(0.002)


@asynccontextmanager
async def gateway_over(
    phones: Iterable[FakePhone] = (),
    *,
    strategy: Any = "weighted_round_robin",
    affinity: bool = True,
    seating: SeatingLimits | None = None,
    patience: PatienceLimits = PATIENT,
    breaker: BreakerLimits | None = None,
    budget: RetryBudget | None = None,
    aliases: dict[str, str] | None = None,
    witness: Witness | None = None,
    **spec: Any,
) -> AsyncIterator[Bench]:
    """Build the parts over phones that are already listening; every phone is listed and probed once."""
    now = asyncio.get_running_loop().time
    registry = Registry()
    witness = witness or Witness()
    policy = Policy(STRATEGIES[strategy], affinity=affinity)
    seats = Seating(registry, policy, seating or SeatingLimits(no_node_seconds=0.2), now)
    backends = Backends({})
    retries = budget or RetryBudget(0.2, 100)
    limits = FailoverLimits(breaker=breaker or BreakerLimits(), patience=patience)
    failover = Failover(seats, backends, retries, witness, limits, now)
    answers = Answers(128, 1 << 20, 600.0, now)
    dispatcher = Dispatcher(registry, seats, failover, answers, witness, aliases or {}, now)
    bench = Bench(registry, seats, dispatcher, answers, backends, witness, retries)
    try:
        for phone in phones:
            await bench.list_phone(phone, **spec)
        yield bench
    finally:
        await dispatcher.aclose()
        await backends.aclose()
