"""GENERATE: an answer, told as it is written; one with a job's name goes on when its connection is cut.

Invariants: an answer that a client cancels, or that nobody can take up any more, leaves the engine before the next
step; the model is free before DONE is sent. Must not know HTTP or torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from gpu_node.engine.sequence import Token
from gpu_node.errors import RequestError, SessionGone
from gpu_node.relay.call import RelayCall
from gpu_node.relay.errors import Failed, Failure
from gpu_node.relay.jobs import Ending, Job, Replaced
from gpu_node.relay.models import Models, Tell
from gpu_node.relay.translation import (
    SMALLEST_CONTEXT,
    Asker,
    Numbering,
    bounds_of,
    generation_of,
    joined,
    keep_alive_of,
    prompt_of,
    text_payloads,
)
from transport.errors import Cancelled
from wire.frames import FrameType
from wire.messages import encode_message
from wire.messages_session import ErrorCode
from wire.messages_work import Done, FinishReason, Generate

FINGERPRINT_BYTES = 16
TAKEN_UP = Failure(ErrorCode.CANCELLED, "another stream has taken up this answer")


class Generations:
    def __init__(self, models: Models, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the engines'."""
        self._models, self._clock = models, clock

    async def handle(self, call: RelayCall) -> None:
        arrived = self._clock()
        asked = call.message(Generate)
        keep_alive_of(asked.keep_alive_seconds)
        if asked.render_only:
            await self._render(call, asked)
        elif asked.job:
            await self._take_up(call, asked, arrived)
        elif asked.next_index and not asked.given:
            raise RequestError("next_index needs a job", field="next_index")
        else:
            ending = await self._answer(asked, call.session.owner, arrived, call.stream.send)
            await call.stream.send(FrameType.DONE, ending.done, ends=True)

    async def _take_up(self, call: RelayCall, asked: Generate, arrived: float) -> None:
        job = self._job_of(call, asked, arrived)
        try:
            ending = await job.follow(call.stream, asked.next_index)
        except Replaced:
            raise Failed(TAKEN_UP) from None
        except (asyncio.CancelledError, Cancelled):
            if not call.stream.over:  # the client wants no more; one whose connection is lost may come back
                await self._abandon(call, asked, job)
            raise
        if ending.failure is None:
            await call.stream.send(FrameType.DONE, ending.done, ends=True)
        job.told_at = asyncio.get_running_loop().time()
        if ending.failure is not None:
            if job.next_index == job.first_index:  # nothing was said: the same request may be tried again
                call.session.jobs.remove(asked.job, job)
            raise Failed(ending.failure)

    def _job_of(self, call: RelayCall, asked: Generate, arrived: float) -> Job:
        session, fingerprint = call.session, fingerprint_of(asked)
        session.jobs.forget_heard(session.surely_heard)
        job = session.jobs.find(asked.job, fingerprint)
        if job is not None:
            return job
        if asked.next_index and not asked.given:
            raise SessionGone("this session has no such job: say in `given` how far the answer has come")
        self._models.residents.find(asked.model)
        new = Job(fingerprint, first_index=asked.next_index)
        session.jobs.add(asked.job, new)
        new.start(lambda: self._answer(asked, session.owner, arrived, new.tell), f"answer for {session.owner}")
        return new

    async def _abandon(self, call: RelayCall, asked: Generate, job: Job) -> None:
        call.session.jobs.remove(asked.job, job)
        await job.stop()

    async def _answer(self, asked: Generate, owner: str, arrived: float, tell: Tell) -> Ending:
        begun = time.perf_counter_ns()
        asker = Asker(owner, asked.caller, asked.cache_salt)
        generation_of(asked, asker, SMALLEST_CONTEXT, arrived)  # a wrong request is told before it waits
        patience = None if asked.deadline_ms is None else asked.deadline_ms / 1000
        async with self._models.hold(asked.model, tell, asked.keep_alive_seconds, patience) as host:
            load_ns, runner = time.perf_counter_ns() - begun, host.engine.runner
            assert runner is not None, "it is held"
            numbering = Numbering(asked, runner.vocabulary)
            events = host.engine.generate(generation_of(asked, asker, host.context_tokens, arrived))
            async with aclosing(events):
                async for event in events:
                    if not isinstance(event, Token):
                        return Ending(numbering.done(event, load_ns))
                    for payload in numbering.payloads(event):
                        await tell(FrameType.TOKENS, payload)
        raise AssertionError("a generation ends with Done or an error")

    async def _render(self, call: RelayCall, asked: Generate) -> None:
        """Of a loaded model at once, without a place among its requests."""
        if asked.given:
            raise RequestError("only a prompt is rendered: `given` must be empty", field="given")
        host = self._models.residents.find(asked.model)
        prompt, begun, load_ns = prompt_of(asked.prompt), time.perf_counter_ns(), 0
        if host.ready and not host.leaving:
            text = await host.engine.render(prompt, bounds_of(asked.bounds, host.context_tokens))
        else:
            async with self._models.hold(asked.model, call.stream.send, asked.keep_alive_seconds) as host:
                load_ns = time.perf_counter_ns() - begun
                text = await host.engine.render(prompt, bounds_of(asked.bounds, host.context_tokens))
        payloads = text_payloads(text)
        for payload in payloads[asked.next_index :]:
            await call.stream.send(FrameType.TOKENS, payload)
        done = Done(len(payloads), FinishReason.STOP, load_ns=load_ns)
        await call.stream.send_message(done, ends=True)


def fingerprint_of(asked: Generate) -> bytes:
    """The same for the same request, whatever may differ when it is sent again."""
    same = replace(asked, next_index=0, given=(), deadline_ms=None)
    return hashlib.blake2b(joined(encode_message(same)), digest_size=FINGERPRINT_BYTES).digest()
