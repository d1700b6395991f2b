"""One attempt at one node: what it is asked, what its events become, and the seam when it goes on with a told answer.

An attempt adds to the `Course` of its request and raises `NodeError`s; it takes no seat, judges no node and never tries
another one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from server.backends.base import Backend, Call
from server.contexts import context_length, options_for
from server.continuation import (
    Diverged,
    ReplaySkip,
    SeamStops,
    Told,
    Way,
    adds_beginning,
    continued_options,
    extended,
    raw_prompt,
    stays_open,
    ways,
)
from server.course import Attempt, Course
from server.errors import NodeBroken, NodeError, NodeRefused
from server.exchange import Embedding, Event, NodeDone, Token
from server.patience import Patience
from server.roster import Seat

OTHERWISE_TOLD = "a replay of the answer told something else"
RENDER_TIMEOUT_SECONDS = 30.0  # a rendering loads the model


class NoWayOn(NodeError):
    """This node cannot go on with the answer so far: not its fault, and nothing was generated."""

    strike = False


class ReplayFailed(NodeError):
    """The node told the answer again, but not the same one: not its fault, and yet a whole attempt."""

    strike = False


@dataclass(slots=True)
class Skips:
    """What a replay tells again: the text and the thinking before it."""

    text: ReplaySkip
    thinking: ReplaySkip

    @classmethod
    def at(cls, told: Told) -> Skips:
        return cls(ReplaySkip(told.text), ReplaySkip(told.thinking))

    @property
    def finished(self) -> bool:
        return self.text.finished and self.thinking.finished

    def feed(self, token: Token) -> Token | None:
        """What is new in the token; None when all of it was told before."""
        if self.finished:
            return token
        try:
            text, thinking = self.text.feed(token.text), self.thinking.feed(token.thinking)
        except Diverged as error:
            raise ReplayFailed(OTHERWISE_TOLD) from error
        if not (text or thinking or token.tool_calls):
            return None
        if not self.finished or (thinking and self.text.text):
            raise ReplayFailed(OTHERWISE_TOLD)  # something new before all that was told has come again
        return replace(token, text=text, thinking=thinking)


def first_call(course: Course, seat: Seat) -> Call:
    request = course.request
    options = options_for(seat, request.options)
    if seat.node.spec.kind == "relay" and not _names_seed(options):
        # the draws of an answer that breaks off are those that another node goes on with
        options = {**options, "seed": course.seed}
    fields = kept_fields(course, seat)
    return Call(request.operation, seat.copy.name, request.messages, request.prompt, options, fields)


def kept_fields(course: Course, seat: Seat) -> Mapping[str, Any]:
    """The request's fields. One that does not say how long its model is kept leaves that to the node's owner."""
    fields, keep_alive = course.request.fields, seat.node.spec.keep_alive
    return fields if keep_alive is None or "keep_alive" in fields else {**fields, "keep_alive": keep_alive}


def _names_seed(options: Mapping[str, Any]) -> bool:
    seed = options.get("seed")
    return isinstance(seed, int) and seed >= 0  # below it is Ollama's way to say "any"


async def plan(
    course: Course, seat: Seat, backend: Backend, timeout_seconds: float = RENDER_TIMEOUT_SECONDS
) -> tuple[Way | str, Call]:
    """How this node is to be asked. Raises NoWayOn when it cannot go on, NodeError when it cannot be asked at all."""
    if not course.told.anything:
        course.told.forget_unheard()
        course.shares.clear()  # whoever began told the client nothing
        return ("retry" if course.attempts else "first"), first_call(course, seat)
    for way in ways(course.request, seat.node, course.told):
        try:
            call = await _call_for(way, course, Asking(seat, backend, timeout_seconds))
        except (NodeBroken, NodeRefused):
            continue  # it does not render as it says: then this way does not fit, and the next may
        if call is not None:
            if way != "exact":
                course.told.ids = None  # what comes now follows a text, not those tokens
            return way, call
    raise NoWayOn("this node cannot continue the answer")


@dataclass(frozen=True, slots=True)
class Asking:
    """A node that is asked how it renders, and how long it may take for that."""

    seat: Seat
    backend: Backend
    timeout_seconds: float

    async def render(self, call: Call) -> str:
        return await self.backend.render(self.seat.node.spec, call, self.timeout_seconds)

    async def adds_beginning(self) -> bool:
        show = await self.backend.show(self.seat.node.spec, self.seat.copy.name, self.timeout_seconds)
        return adds_beginning(show)


async def _call_for(way: Way, course: Course, asking: Asking) -> Call | None:
    if way == "exact":
        return _exact_call(course, asking.seat)
    if way == "chat":
        return _chat_call(course, asking.seat) if await _chat_stays_open(course, asking) else None
    if way == "raw":
        return await _raw_call(course, asking)
    return first_call(course, asking.seat)


def _exact_call(course: Course, seat: Seat) -> Call | None:
    """The very same request with the tokens so far; they mean something to the same weights and vocabulary only."""
    copy = course.copy
    if copy is None or not copy.digest or copy.digest != seat.copy.digest:
        return None
    return replace(first_call(course, seat), begun=course.told.begun)


async def _chat_stays_open(course: Course, asking: Asking) -> bool:
    seat = asking.seat
    if seat.node.spec.kind == "openai" or (seat.node.report is not None and seat.node.report.continues_assistant):
        return True  # by setting, or by its own word
    rendered = await _rendering(course, asking)
    text = course.told.text
    longer = replace(first_call(course, seat), messages=extended(course.request.messages, text))
    return stays_open(rendered, await asking.render(longer), text)


async def _rendering(course: Course, asking: Asking) -> str:
    """The request as the node renders it; kept for the same digest, version and context, no further."""
    seat = asking.seat
    version = seat.node.report.version if seat.node.report is not None else ""
    key = (seat.copy.digest, version, context_length(seat))
    if key not in course.renderings:
        course.renderings[key] = await asking.render(first_call(course, seat))
    return course.renderings[key]


def _chat_call(course: Course, seat: Seat) -> Call:
    request = course.request
    return Call(
        "chat",
        seat.copy.name,
        messages=extended(request.messages, course.told.text),
        options=options_for(seat, continued_options(request.options, course.told.tokens)),
        fields={**kept_fields(course, seat), "truncate": False},
        continues=True,
    )


async def _raw_call(course: Course, asking: Asking) -> Call:
    request, seat = course.request, asking.seat
    if request.operation == "generate" and request.fields.get("raw"):
        prompt = request.prompt + course.told.text
    else:
        rendered = await _rendering(course, asking)
        prompt = raw_prompt(rendered, course.told.text, await asking.adds_beginning())
    fields: dict[str, Any] = {"raw": True, "truncate": False}
    kept = kept_fields(course, seat)
    if "keep_alive" in kept:
        fields["keep_alive"] = kept["keep_alive"]
    options = options_for(seat, continued_options(request.options, course.told.tokens))
    return Call("generate", seat.copy.name, prompt=prompt, options=options, fields=fields)


async def tell(
    course: Course, attempt: Attempt, call: Call, backend: Backend, patience: Patience, clock: Callable[[], float]
) -> AsyncGenerator[Sequence[Event], None]:
    """The attempt's events, cleaned at the seam. Sets `attempt.done` at the end; raises NodeError."""
    skip = Skips.at(course.told) if attempt.way == "replay" else None
    seam = SeamStops.at(course.request.options, course.told.text) if attempt.way in ("chat", "raw") else None
    async with aclosing(backend.stream(attempt.seat.node.spec, call, patience)) as batches:
        async for batch in batches:
            attempt.last_at = clock()
            if attempt.first_at is None:
                attempt.first_at = attempt.last_at
            last = batch[-1]
            if isinstance(last, NodeDone):
                attempt.done = last
            if skip is None and seam is None:
                events = _told(course, attempt, batch)
            else:
                events = _told(course, attempt, _cleaned(course, attempt, batch, skip, seam))
            if attempt.stopped and attempt.done is not None:
                attempt.done = replace(attempt.done, reason="stop")
            if events:
                yield events
            if attempt.stopped:
                return
    if skip is not None and not skip.finished:
        raise ReplayFailed("a replay of the answer ended before the point where it broke off")


def _told(course: Course, attempt: Attempt, batch: Sequence[Any]) -> list[Event]:
    """Write down what the client is about to hear."""
    events: list[Event] = []
    for event in batch:
        if isinstance(event, Token):
            attempt.tokens += course.told.add(event)
            if event.text or event.is_heard:
                events.append(event)
        elif isinstance(event, Embedding):
            events.append(event)
    if events and course.first_token_at is None:
        course.first_token_at = attempt.last_at
    if events and course.copy is None:
        course.copy, course.kind = attempt.seat.copy, attempt.seat.node.spec.kind
    if events:
        course.outage.delivered(attempt.seat.id)
    return events


def _cleaned(
    course: Course, attempt: Attempt, batch: Sequence[Any], skip: Skips | None, seam: SeamStops | None
) -> list[Any]:
    """The batch without what was told before (replay), and ended where a stop string closes over the seam."""
    cleaned: list[Any] = []
    for event in batch:
        if not isinstance(event, Token):
            if seam is not None and isinstance(event, NodeDone) and seam.held:
                cleaned.append(Token(seam.rest(), tokens=seam.held_tokens))
            cleaned.append(event)
        elif skip is not None:
            token = skip.feed(event)
            if token is not None:
                cleaned.append(token)
        elif seam is not None and event.text:
            text, attempt.stopped = seam.feed(event.text, event.tokens)
            if attempt.stopped:
                break
            if text == event.text:
                cleaned.append(event)
            elif text or event.thinking or event.tool_calls:
                cleaned.append(replace(event, text=text, tokens=seam.held_tokens if text else 0, ids=None))
        else:
            cleaned.append(event)
    return cleaned
