"""The one door to the fleet: every request comes in here and ends in exactly one terminal event.

Answers from the cache, with an equal request in flight, or anew by `failover`; refuses after the cut-off; tells
the observer how each request ended. Holds no node's state and decides nothing about nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from server.answers import Answers, SharedAnswer, answer_key, complete_answer, is_last, replayed
from server.catalog import resolve
from server.course import Course
from server.errors import GatewayDraining, GatewayError
from server.exchange import AskRequest, CacheOutcome, Done, Event, Started
from server.failover import Failover, failed
from server.nodes import ModelKey, Node, NodeId
from server.observer import Observer, record_of
from server.registry import Registry
from server.seating import Seating


@dataclass(slots=True)
class Visit:
    """One request at the door: how the cache took it, and the course it takes (of another, where it joined)."""

    course: Course
    cache: CacheOutcome = "off"
    request: AskRequest = field(init=False)
    arrived: float = field(init=False)

    def __post_init__(self) -> None:
        self.request, self.arrived = self.course.request, self.course.arrived


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
        registry.listen(self._follow)
        self._running: set[asyncio.Task[Any]] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._cut = False

    async def stream(self, request: AskRequest) -> AsyncGenerator[Sequence[Event], None]:
        """Run one request. Yields batches of events: first Started, at the very end exactly one Done or Failed.

        Close the stream (aclose) when its client leaves: that cancels the work on the node.
        """
        visit = Visit(self._failover.course(request, self._now()))
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        last: Event = Started("off")
        try:
            async with aclosing(self._answer(visit)) as batches:
                async for batch in batches:
                    last = batch[-1]
                    if is_last(last):
                        self._record(visit, last)
                    yield batch
        except asyncio.CancelledError:
            if not self._cut or is_last(last):
                raise
            task.uncancel()  # ours, from `cut_off`: the client gets an honest end instead
            last = failed(visit.course, GatewayDraining("the gateway was stopped before the answer was whole"))
            self._record(visit, last)
            yield [last]
        except Exception:  # top of a request: a fault of ours is no client that left, so it is told as what it is
            last = failed(visit.course, GatewayError("the gateway failed by a fault of its own"))
            self._record(visit, last)
            raise
        finally:
            self._running.discard(task)
            if not is_last(last):
                self._record(visit, None)

    async def _answer(self, visit: Visit) -> AsyncGenerator[Sequence[Event], None]:
        """From the cache, together with an equal request, or made anew."""
        course = visit.course
        try:
            if self._cut:  # before it what runs may go on, the items of a batch too; HTTP takes nothing new then
                raise GatewayDraining("the gateway was stopped before this could begin")
            model = resolve(course.request.model, self._registry.fleet.nodes.values(), self._aliases)
        except GatewayError as error:
            yield [Started("off"), failed(course, error)]
            return
        if not self._answers.wants(course.request):
            yield [Started("off")]
            events = self._failover.answer(course, model)
        else:
            key = answer_key(course.request, model, self._answers.generation)
            cached = self._answers.get(key)
            if cached is not None:
                self._answers.hits += 1
                visit.cache = "hit"
                yield [Started("hit"), *replayed(cached, (self._now() - course.arrived) * 1000)]
                return
            # who is in a hurry shares with nobody: neither its haste with the others, nor their leisure with it
            hurried = course.request.deadline_seconds is not None
            events = self._keep(visit, model, key) if hurried else self._share(visit, model, key)
        async with aclosing(events) as batches:
            async for batch in batches:
                yield batch

    async def _keep(self, visit: Visit, model: ModelKey | None, key: bytes) -> AsyncGenerator[Sequence[Event], None]:
        """Make the answer for this request alone, and keep it when it is whole."""
        self._answers.misses += 1
        visit.cache = "miss"
        yield [Started("miss")]
        told: list[Event] = []
        async with aclosing(self._failover.answer(visit.course, model)) as batches:
            async for batch in batches:
                last = batch[-1]
                told += batch
                if isinstance(last, Done):
                    batch = [*batch[:-1], replace(last, cache="miss")]
                    answer = complete_answer(told)
                    if answer is not None:
                        self._answers.put(key, answer)
                yield batch

    async def _share(self, visit: Visit, model: ModelKey | None, key: bytes) -> AsyncGenerator[Sequence[Event], None]:
        """Make the answer in a task of its own, so that one listener's leaving does not end it for the others."""
        answers = self._answers
        shared = answers.in_flight.get(key)
        outcome: CacheOutcome = "miss" if shared is None else "joined"
        if shared is None:
            answers.misses += 1
            shared = answers.in_flight[key] = SharedAnswer(visit.course)
            making = asyncio.create_task(self._make_shared(model, key, shared))
            self._making.add(making)
            making.add_done_callback(self._making.discard)
            shared.on_abandoned = lambda: self._abandon(key, shared, making)
        else:
            answers.joined += 1
            visit.course = shared.course
        visit.cache = outcome
        async with aclosing(shared.listen()) as batches:  # before anything is told: who leaves now leaves the answer
            yield [Started(outcome)]
            async for batch in batches:
                last = batch[-1]
                yield [*batch[:-1], replace(last, cache=outcome)] if isinstance(last, Done) else batch

    def _follow(self, was: Node | None, now: Node | None) -> None:
        """A model under the same name is another one now: answers of the old one are not told again."""
        if was is None or now is None:
            return
        for key, copy in was.models.items():
            if key in now.models and now.models[key].digest != copy.digest:
                self._answers.generation += 1
                return

    def _abandon(self, key: bytes, shared: SharedAnswer, making: asyncio.Task[None]) -> None:
        """The last listener left: nobody may join an answer that is being cancelled."""
        if self._answers.in_flight.get(key) is shared:
            del self._answers.in_flight[key]
        making.cancel()

    async def _make_shared(self, model: ModelKey | None, key: bytes, shared: SharedAnswer) -> None:
        answers = self._answers
        try:
            async with aclosing(self._failover.answer(shared.course, model)) as batches:
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

    def _record(self, visit: Visit, last: Event | None) -> None:
        """Tell the observer how the request ended; `last` is None when its client left."""
        total = (self._now() - visit.arrived) * 1000
        self._observer.request_finished(record_of(visit.request, last, visit.cache, total, visit.course))

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

    def cut_off(self) -> None:
        """The time for draining is over: every running answer ends with an honest error, and none begins."""
        self._cut = True
        for task in list(self._running):
            task.cancel()

    async def aclose(self) -> None:
        self._seating.close()
        for task in list(self._making):
            task.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)
