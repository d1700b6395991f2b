"""From a checked call to told tokens: load, wait for a slot, read the prompt, speak, remember. The dialects only
format.

Whoever leaves frees the slot at once and stops the speaking; what was read and said until then stays held, as in a
real runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.fakes.phone_call import Call, Ending, Piece, Plan, plan_call, tokens_of
from tests.fakes.phone_faults import BUSY
from tests.fakes.phone_http import Exchange
from tests.fakes.phone_memory import Busy, Loaded
from tests.fakes.phone_requests import Refused
from tests.fakes.phone_state import PhoneState
from tests.fakes.phone_telling import Pace, Telling


@dataclass(slots=True)
class Spoken:
    """What is known when an answer has ended."""

    plan: Plan
    started: float
    loaded_after: float  # seconds spent on the load
    read_after: float = 0.0  # seconds of reading the prompt
    spoke_for: float = 0.0
    finished: float = 0.0
    ending: Ending = field(default_factory=lambda: Ending("stop", 0))
    pieces: list[Piece] = field(default_factory=list)

    @property
    def prompt_count(self) -> int:
        return len(self.plan.read_tokens)


@dataclass(slots=True)
class Session:
    """A slot in use: the plan of the answer and the model that speaks it."""

    state: PhoneState
    loaded: Loaded
    spoken: Spoken

    async def read(self) -> None:
        """Take the time that the unread part of the prompt takes. At least one token is always read."""
        state, plan = self.state, self.spoken.plan
        tokens = plan.read_tokens
        shared = self.loaded.cache.shared(tokens) if state.settings.prompt_cache else 0
        unread = max(1, len(tokens) - shared)
        began = state.clock()
        seconds = state.settings.reading_seconds(unread)
        if seconds > 0.0:
            await asyncio.sleep(seconds)
        if not state.thawed.is_set():
            await state.thawed.wait()
        state.counters.tokens_read += unread
        self.spoken.read_after = state.clock() - began

    async def speak(self, say: Callable[[Piece], Awaitable[None] | None], exchange: Exchange | None = None) -> None:
        """The answer, paced; `spoken` is complete when this returns, and true so far when it is cancelled.

        With an exchange, what `say` writes without a pause between goes out in bursts.
        """
        state, spoken = self.state, self.spoken
        pace = Pace(state)
        began = state.clock()
        burst = 0
        try:
            for piece in spoken.plan.pieces():
                if isinstance(piece, Ending):
                    spoken.ending = piece
                    break
                delay = pace.delay(len(piece.tokens))
                if delay or burst >= state.settings.burst:  # without a speed, others still get their turn
                    if exchange is not None:
                        exchange.uncork()
                    await asyncio.sleep(delay)
                    burst = 0
                if not delay:
                    burst += 1
                    if exchange is not None:
                        exchange.cork()
                spoken.pieces.append(piece)
                waiting = say(piece)
                if waiting is not None:
                    await waiting
        finally:
            spoken.finished = state.clock()
            spoken.spoke_for = spoken.finished - began
            self._remember()

    def _remember(self) -> None:
        bound = self.state.settings.prompt_cache
        if bound:
            said = "".join(piece.text for piece in self.spoken.pieces)
            self.loaded.cache.store((*self.spoken.plan.prompt_tokens, *tokens_of(said)), bound)


@asynccontextmanager
async def session_for(state: PhoneState, call: Call) -> AsyncIterator[Session]:
    """Load and wait for a slot, and give it back whatever happens."""
    counters, settings = state.counters, state.settings
    started = state.clock()
    keep_alive = keep_alive_of(state, call)
    counters.waiting += 1
    try:
        loaded, load_seconds = await load(state, call)
        plan = plan_call(call, settings, state.salt(), loaded.num_ctx)
        if plan.too_long and not call.truncate:
            raise too_long(plan, state)
        await state.runner.acquire(loaded)
    finally:
        counters.waiting -= 1
    counters.generating += 1
    counters.max_generating = max(counters.max_generating, counters.generating)
    try:
        yield Session(state, loaded, Spoken(plan, started, load_seconds))
    finally:
        counters.generating -= 1
        state.runner.release(loaded, keep_alive)


async def load(state: PhoneState, call: Call) -> tuple[Loaded, float]:
    try:
        loaded, seconds = await state.runner.load(call.model, call.num_ctx, keep_alive_of(state, call))
    except Busy as error:
        raise Refused(503, BUSY) from error
    state.counters.loads = state.runner.loads
    return loaded, seconds


def keep_alive_of(state: PhoneState, call: Call) -> float:
    return state.settings.keep_alive_seconds if call.keep_alive is None else call.keep_alive


def too_long(plan: Plan, state: PhoneState) -> Refused:
    if not state.settings.profile.too_long_from_runner:
        return Refused(400, "the input length exceeds the context length")
    count, context = len(plan.prompt_tokens), plan.context
    return Refused(
        400,
        f'{{"error":{{"code":400,"message":"request ({count} tokens) exceeds the available context size '
        f'({context} tokens), try increasing it","type":"exceed_context_size_error",'
        f'"n_prompt_tokens":{count},"n_ctx":{context}}}}}',
    )


async def gather(session: Session, telling: Telling) -> str:
    """The whole answer of a call that does not stream. The tokens count as told."""
    await session.read()
    await session.speak(lambda _: None)
    telling.state.counters.tokens_sent += sum(len(piece.tokens) for piece in session.spoken.pieces)
    return "".join(piece.text for piece in session.spoken.pieces if not piece.thinking)
