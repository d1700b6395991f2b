"""The one door to the fleet: every request comes in here and ends in exactly one terminal event.

Answers from the cache, together with an equal request in flight, or anew by `failover`; refuses while draining; tells
the observer how each request ended. Holds no node's state and decides nothing about nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from server.answers import Answers, SharedAnswer, answer_key, complete_answer, is_last, replayed
from server.catalog import resolve
from server.errors import GatewayDraining, GatewayError
from server.exchange import AskRequest, CacheOutcome, Done, Event, Failed, Started
from server.failover import Failover
from server.nodes import ModelKey, NodeId
from server.observer import Observer, record_of
from server.registry import Registry
from server.seating import Seating


class Dispatcher:
    """Runs requests. One per gateway, on its event loop; close it with `aclose`."""

    def __init__(
        self,
        registry: Registry,
        seating: Seating,
        failover: Failover,
        answers: Answers,
        observer: Observer,
        aliases: Mapping[str, str],
        now: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._seating = seating
        self._failover = failover
        self._answers = answers
        self._observer = observer
        self._aliases = aliases
        self._now = now
        self._running: set[asyncio.Task[Any]] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._cut = False
        self.draining = False

    async def stream(self, request: AskRequest) -> AsyncGenerator[Sequence[Event], None]:
        """Run one request. Yields batches of events: first Started, at the very end exactly one Done or Failed.

        Close the stream (aclose) when its client leaves: that cancels the work on the node.
        """
        arrived = self._now()
        last: Event = Started("off")
        outcome: CacheOutcome = "off"
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            async with aclosing(self._answer(request, arrived)) as batches:
                async for batch in batches:
                    if isinstance(batch[0], Started):
                        outcome = batch[0].cache
                    last = batch[-1]
                    if is_last(last):
                        self._record(request, arrived, last, outcome)
                    yield batch
        except asyncio.CancelledError:
            if not self._cut or is_last(last):
                raise
            task.uncancel()  # ours, from `cut_off`: the client gets an honest end instead
            last = Failed(GatewayDraining("the gateway was stopped before the answer was whole"))
            self._record(request, arrived, last, outcome)
            yield [last]
        finally:
            self._running.discard(task)
            if not is_last(last):
                self._record(request, arrived, None, outcome)

    async def _answer(self, request: AskRequest, arrived: float) -> AsyncGenerator[Sequence[Event], None]:
        """From the cache, together with an equal request, or made anew."""
        try:
            if self.draining:
                raise GatewayDraining("the gateway is being stopped")
            model = resolve(request.model, self._registry.fleet.nodes.values(), self._aliases)
        except GatewayError as error:
            yield [Started("off"), Failed(error)]
            return
        if not self._answers.wants(request):
            yield [Started("off")]
            events = self._failover.answer(request, model, arrived)
        else:
            key = answer_key(request, model)
            cached = self._answers.get(key)
            if cached is not None:
                self._answers.hits += 1
                yield [Started("hit"), *replayed(cached, (self._now() - arrived) * 1000)]
                return
            events = self._share(request, model, arrived, key)
        async with aclosing(events) as batches:
            async for batch in batches:
                yield batch

    async def _share(
        self, request: AskRequest, model: ModelKey | None, arrived: float, key: bytes
    ) -> AsyncGenerator[Sequence[Event], None]:
        """Make the answer in a task of its own, so that one listener's leaving does not end it for the others."""
        answers = self._answers
        shared = answers.in_flight.get(key)
        outcome: CacheOutcome = "miss" if shared is None else "joined"
        if shared is None:
            answers.misses += 1
            shared = answers.in_flight[key] = SharedAnswer()
            making = asyncio.create_task(self._make_shared(request, model, arrived, key, shared))
            self._making.add(making)
            making.add_done_callback(self._making.discard)
            shared.on_abandoned = lambda: self._abandon(key, shared, making)
        else:
            answers.joined += 1
        yield [Started(outcome)]
        async with aclosing(shared.listen()) as batches:
            async for batch in batches:
                last = batch[-1]
                yield [*batch[:-1], replace(last, cache=outcome)] if isinstance(last, Done) else batch

    def _abandon(self, key: bytes, shared: SharedAnswer, making: asyncio.Task[None]) -> None:
        """The last listener left: nobody may join an answer that is being cancelled."""
        if self._answers.in_flight.get(key) is shared:
            del self._answers.in_flight[key]
        making.cancel()

    async def _make_shared(
        self, request: AskRequest, model: ModelKey | None, arrived: float, key: bytes, shared: SharedAnswer
    ) -> None:
        answers = self._answers
        try:
            async with aclosing(self._failover.answer(request, model, arrived)) as batches:
                async for batch in batches:
                    if is_last(batch[-1]):
                        # whoever asks from here on finds the cache, not an answer that is over
                        answers.in_flight.pop(key, None)
                        answer = complete_answer([*shared.events, *batch])
                        if answer is not None:
                            answers.put(key, answer)
                    shared.tell(batch)
        except Exception as error:  # a fault of ours: those who listen raise it, at their own top
            shared.fault = error
        finally:
            if answers.in_flight.get(key) is shared:
                del answers.in_flight[key]
            shared.end()

    def _record(self, request: AskRequest, arrived: float, last: Event | None, cache: CacheOutcome) -> None:
        """Tell the observer how the request ended; `last` is None when its client left."""
        self._observer.request_finished(record_of(request, last, cache, (self._now() - arrived) * 1000))

    def queue_status(self) -> dict[str, Any]:
        room = self._seating.room
        oldest = min((ticket.since for ticket in room), default=None)
        return {
            "waiting": room.waiting,
            "limit": room.limit,
            "callers": dict(room.by_caller()),
            "oldest_s": 0.0 if oldest is None else round(self._now() - oldest, 3),
        }

    def cache_status(self) -> dict[str, Any]:
        answers = self._answers
        return {
            "enabled": answers.enabled,
            "entries": answers.entries,
            "bytes": answers.size_bytes,
            "hits": answers.hits,
            "misses": answers.misses,
            "joined": answers.joined,
        }

    def held_conversations(self, node_id: str) -> int:
        memory = self._seating.memories.by_node.get(NodeId(node_id))
        return len(memory) if memory is not None else 0

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on."""
        self.draining = True

    def cut_off(self) -> None:
        """The time for draining is over: every running answer ends with an honest error."""
        self._cut = True
        for task in list(self._running):
            task.cancel()

    async def aclose(self) -> None:
        self._seating.close()
        for task in list(self._making):
            task.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
