"""Nodes of kind relay: our own GPU nodes over their binary protocol, one multiplexed connection each.

All that is asked of a node shares its session, which mends a cut by itself: a running answer is taken up where it was
left, and the time that takes counts as silence. Whatever the node or the transport says leaves here as a `NodeError`,
judged as over HTTP. What the calls mean is `relay_request`'s, what the answers mean `relay_answer`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from server.backends.base import Call, Patience
from server.backends.faults import NODE_FORM_WORDS, about_form
from server.backends.node_http import NodeHttp
from server.backends.relay_answer import cause_of, done_of, embedding_of, error_of, token_of, too_large, translated
from server.backends.relay_links import Line, RelayLinks
from server.backends.relay_operations import RelayOperations
from server.backends.relay_report import report_of, shown
from server.backends.relay_request import asked_of, embed_of, rendering_of
from server.backends.relay_watch import Watch
from server.errors import NodeBroken, NodeError, NodeRefused, NodeStalled
from server.exchange import Durations, Embedding, NodeDone, NodeEvent, Usage
from server.nodes import NodeSpec, ProbeReport, model_key
from transport.errors import Refused, TransportError
from wire.errors import LocalError
from wire.messages import Message
from wire.messages_work import Done, Embed, Generate, Load, Progress, Tokens, Unload, Vectors

SPARE_TOKENS = 64  # end tokens and the like, which not every engine counts: what is never to end has more soon


class RelayBackend:
    """`secrets` maps the names that entries give in `api_key_env` to tokens; `http` is for other kinds of nodes."""

    def __init__(self, http: NodeHttp | None, secrets: Mapping[str, str], links: RelayLinks | None = None) -> None:
        self._links = links or RelayLinks(secrets)
        self.operations = RelayOperations(self._links)

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        with self._links.line(spec) as line:
            report = report_of(await line.stats(timeout_seconds, "probe"))
            return replace(report, node_id=line.node_id)

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Sequence[NodeEvent], None]:
        with self._links.line(spec) as line:
            asking = Asking(call, line, patience)
            try:
                asked = await asking.request()
                if not isinstance(asked, Generate):
                    yield await asking.ask_once(asked)
                    return
                await asking.connect()
                asking.most_tokens = asked.bounds.max_tokens
                async with aclosing(line.session.batches(asked)) as batches:
                    while not asking.answered:
                        with asking.watch:
                            batch = await anext(batches, None)
                        if line.incarnation != asking.incarnation:
                            await asking.meet_again()
                        if events := asking.events_of(batch):
                            yield events
            except TransportError as problem:
                raise asking.fault_of(problem) from cause_of(problem)
            except LocalError as problem:
                raise too_large(problem) from problem
            finally:
                asking.watch.close()

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        with self._links.line(spec) as line, translated(spec.address):
            asked = rendering_of(asked_of(call, await line.parameters(call.model, timeout_seconds)), call)
            try:
                async with asyncio.timeout(timeout_seconds), aclosing(line.session.generate(asked)) as messages:
                    return "".join([message.text async for message in messages if isinstance(message, Tokens)])
            except TimeoutError as problem:
                message = f"{spec.address} did not render a prompt within {timeout_seconds:g} s"
                raise NodeStalled(message, "render") from problem

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        with self._links.line(spec) as line:
            stats = await line.stats(timeout_seconds, "show", model)
        for record in stats.models:
            if model_key(record.name) == model_key(model):
                return shown(record, dict(stats.values))
        raise NodeRefused(f"model '{model}' not found", 404)

    async def aclose(self) -> None:
        """Close the connections to all nodes of this kind."""
        await self._links.aclose()


@dataclass(slots=True)
class Asking:
    """One call at one node, from the first byte to the last event."""

    call: Call
    line: Line
    patience: Patience
    most_tokens: int = -1  # that the answer may have; below 0 as many as the model wants
    incarnation: int | None = field(default=None, init=False)  # the run of the node that is answering
    watch: Watch = field(init=False)
    answered: bool = field(default=False, init=False)
    _begun_ns: int = field(default_factory=time.perf_counter_ns, init=False)
    _heard: bool = field(default=False, init=False)  # something of the answer
    _digest: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.line.address, self.patience)

    async def request(self) -> Generate | Load | Unload | Embed | None:
        """None: there is nothing to embed."""
        if self.call.operation == "embed":
            return embed_of(self.call)
        return asked_of(self.call, await self.line.parameters(self.call.model, self.patience.connect))

    async def connect(self) -> None:
        self.watch.expect("connect", self.patience.connect)
        with self.watch:
            self.incarnation = (await self.line.session.link()).welcome.incarnation
        self._digest = self.line.digest(self.call.model)
        self.watch.expect("first_token", self.patience.first_token)

    async def meet_again(self) -> None:
        """Behind a cut the node may have started anew, and go on by ids that mean nothing to other weights."""
        if self.line.incarnation is None:
            return  # cut once more: what has come is from a run that was looked at
        self.incarnation = self.line.incarnation
        await self.line.stats(self.patience.connect, "connect")
        if self._heard and self.line.digest(self.call.model) != self._digest:
            raise NodeBroken(f"{self.line.address} has started anew, with another {self.call.model}")

    def events_of(self, batch: Sequence[Tokens | Progress | Done] | None) -> list[NodeEvent]:
        """What has just come. Progress of a loading is a sign of life and no event."""
        if batch is None:
            raise NodeBroken(f"{self.line.address} ended its answer without a last word")
        events: list[NodeEvent] = []
        for message in batch:
            if isinstance(message, Tokens):
                events.append(token_of(message))
            elif isinstance(message, Done):
                events.append(self._done(message))
                self.answered = True
        last = batch[-1]
        if isinstance(last, Tokens) and 0 <= self.most_tokens < last.position + len(last.ids) - SPARE_TOKENS:
            raise NodeBroken(f"{self.line.address} tells more than the {self.most_tokens} tokens that were asked for")
        if events:
            self._heard = True
            self.watch.expect("between_tokens", self.patience.between_tokens)
        else:
            self._wait_on()
        return events

    async def ask_once(self, asked: Load | Unload | Embed | None) -> Sequence[NodeEvent]:
        """What needs no generating: a loading, an unloading, vectors."""
        model = self.call.model
        if asked is None:
            return (Embedding([]), NodeDone("stop", model))
        await self.connect()
        with self.watch:
            answer = await self._answer_to(asked)
        durations = Durations(total=self._total_ns())
        if isinstance(asked, Embed):
            if not isinstance(answer, Vectors):
                raise NodeBroken(f"{self.line.address} answered EMBED with {type(answer).__name__}")
            found = embedding_of(answer, self.line.address, len(asked.texts))
            return (found, NodeDone("stop", model, Usage(answer.prompt_tokens), durations))
        return (NodeDone("load" if isinstance(asked, Load) else "unload", model, durations=durations),)

    async def _answer_to(self, asked: Load | Unload | Embed) -> Message:
        """Of more dimensions than a model has, all of them are wanted, as Ollama takes it."""
        try:
            return await self.line.session.ask(asked, self._wait_on)
        except Refused as refusal:
            if not isinstance(asked, Embed) or refusal.details.get("field") != "dimensions":
                raise
        return await self.line.session.ask(replace(asked, dimensions=0), self._wait_on)

    def fault_of(self, problem: TransportError) -> NodeError:
        error = error_of(self.line.address, problem, begun=self._heard)
        return about_form(error, NODE_FORM_WORDS) if "format" in self.call.fields else error

    def _wait_on(self, _: Progress | None = None) -> None:
        self.watch.expect("first_token", self.patience.first_token)

    def _done(self, done: Done) -> NodeDone:
        """Only where a text goes through the template do the ids of prompt and answer lead on, as over HTTP."""
        with_context = self.call.operation == "generate" and not self.call.fields.get("raw")
        return done_of(done, self.call.model, self._total_ns(), with_context=with_context)

    def _total_ns(self) -> int:
        return time.perf_counter_ns() - self._begun_ns
