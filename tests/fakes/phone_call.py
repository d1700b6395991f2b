"""One request for an answer, and what a phone will say to it: `Call` -> `Plan` -> pieces. Pure.

The same functions drive the phone and tell tests what to expect, so a test never repeats the phone's arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.fakes.phone_template import Message, render
from tests.fakes.phone_text import Answer, Conversation, answer_to, conversation_digits

_TOKENS = re.compile(r"<\|\w+\|>| ?w\d+-[0-9a-f]{4}\w*| ?\w+| ?[^\w\s]|\s")
_JSON_PIECES = re.compile(r'"[^"]{0,5}|[^"]{1,4}|"')


def tokens_of(text: str) -> list[str]:
    """How the fake tokenizer cuts a prompt: words with the space before them (its own ones stay whole), marks, single
    white space."""
    return _TOKENS.findall(text)


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request to /api/chat or /api/generate; the other dialects are translated into one."""

    model: FakeModel
    asked_name: str
    kind: str = "chat"  # or "generate"
    stream: bool = True
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    context_text: str = ""  # what an earlier answer's `context` stands for
    raw: bool = False
    template: str = ""  # a Go template sent along; `.System` and `.Prompt` are filled in
    options: dict[str, Any] = field(default_factory=dict)
    format: Any = None
    tools: tuple[dict[str, Any], ...] = ()
    think: bool = False
    keep_alive: float | None = None  # seconds; None: the phone's own
    render_only: bool = False
    truncate: bool = True
    logprobs: int | None = None  # None: not asked; else how many alternatives

    @property
    def num_ctx(self) -> int | None:
        value = self.options.get("num_ctx")
        return int(value) if value else None

    @property
    def limit(self) -> int | None:
        """`num_predict`; None where it is endless, which 0 and every negative value are."""
        value = int(self.options.get("num_predict") or 0)
        return value if value > 0 else None

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(stop for stop in self.options.get("stop") or () if stop)


class Piece(NamedTuple):
    """One chunk of an answer and the tokens that it stands for."""

    text: str
    tokens: tuple[str, ...]
    thinking: bool = False
    tool_calls: tuple[dict[str, Any], ...] = ()


class Ending(NamedTuple):
    reason: str  # "stop" or "length"
    eval_count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a phone is about to do with a call."""

    call: Call
    rendered: str
    prompt_tokens: tuple[str, ...]
    context: int
    answer: Answer
    told: str = ""
    halves: bool = False

    @property
    def read_tokens(self) -> tuple[str, ...]:
        """What the model gets to read of the prompt."""
        if not self.too_long:
            return self.prompt_tokens
        return self.prompt_tokens[: self.context // 2 + 2 if self.halves else self.context]

    @property
    def too_long(self) -> bool:
        return len(self.prompt_tokens) > self.context

    def pieces(self) -> Iterator[Piece | Ending]:
        """Every chunk in order and the ending last; stop strings are honoured across the borders of tokens."""
        if self.call.think:
            yield from (Piece(text, (text,), thinking=True) for text in self._thoughts())
        if self.call.tools and self.call.messages[-1].role == "user":
            yield Piece("", ("",), tool_calls=(self._tool_call(),))
            yield Ending("stop", 2)
            return
        yield from _until_stop(self._texts(), self.call.limit, self.call.stops)

    def _texts(self) -> Iterator[str]:
        if self.call.format is not None:
            return iter(_JSON_PIECES.findall(json_answer(self)))
        return self.answer.rest()

    def _thoughts(self) -> Iterator[str]:
        return iter([f"{' ' if step else ''}t{step}-{self.answer.tag}" for step in range(6)])

    def _tool_call(self) -> dict[str, Any]:
        function = self.call.tools[0].get("function", {})
        arguments = instance_of(function.get("parameters") or {}, self.answer.tag)
        return {"function": {"name": function.get("name", ""), "arguments": arguments}}


def _until_stop(texts: Iterator[str], limit: int | None, stops: Sequence[str]) -> Iterator[Piece | Ending]:
    """A token that may be the beginning of a stop string is held back until it is known not to be."""
    if not stops:
        yield from _without_stops(texts, limit)
        return
    held = ""
    tokens: list[str] = []
    count = 0
    for text in texts:
        count += 1
        held += text
        tokens.append(text)
        cut = min((held.find(stop) for stop in stops if stop in held), default=-1)
        if cut >= 0:
            if cut:
                yield Piece(held[:cut], tuple(tokens))
            yield Ending("stop", count)
            return
        last = limit is not None and count >= limit
        if last or not any(_may_begin(held, stop) for stop in stops):
            yield Piece(held, tuple(tokens))
            held, tokens = "", []
        if last:
            yield Ending("length", count)
            return
    if held:
        yield Piece(held, tuple(tokens))
    yield Ending("stop", count + 1)  # the end-of-turn token counts


def _without_stops(texts: Iterator[str], limit: int | None) -> Iterator[Piece | Ending]:
    count = 0
    for text in texts:
        count += 1
        yield Piece(text, (text,))
        if count == limit:
            yield Ending("length", count)
            return
    yield Ending("stop", count + 1)  # the end-of-turn token counts


def _may_begin(text: str, stop: str) -> bool:
    return any(text.endswith(stop[:size]) for size in range(1, len(stop)))


def json_answer(plan: Plan) -> str:
    """What a grammar lets through: an instance of the schema, or an object of words that are as traceable as the text.

    A grammar knows nothing of what was told before, so it begins anew, unless the phone is set to go on.
    """
    if isinstance(plan.call.format, dict):
        text = orjson.dumps(instance_of(plan.call.format, plan.answer.tag), option=orjson.OPT_INDENT_2).decode()
    else:
        words = {f"w{step}": f"w{step}-{plan.answer.tag}" for step in range(min(plan.answer.length, 24))}
        text = orjson.dumps(words, option=orjson.OPT_INDENT_2).decode()
    return text.removeprefix(plan.told) if plan.told and text.startswith(plan.told) else text


def instance_of(schema: dict[str, Any], tag: str) -> Any:
    """A value that satisfies a JSON schema (the subset that Ollama's grammars know)."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][int(tag[:4], 16) % len(schema["enum"])]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return instance_of(schema[union][0], tag)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        return {name: instance_of(inner, tag) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance_of(schema.get("items") or {}, tag) for _ in range(max(1, schema.get("minItems", 2)))]
    number = int(tag[:4], 16)
    plain: dict[Any, Any] = {"integer": number, "number": number / 8, "boolean": number % 2 == 0, "null": None}
    return plain.get(kind, f"w0-{tag}")


def plan_call(call: Call, settings: PhoneSettings, salt: str, num_ctx: int | None = None) -> Plan:
    """Render, count and find the answer. `salt`: four hex digits that are used only if nothing makes the answer
    deterministic.
    """
    context = num_ctx or call.num_ctx or settings.num_ctx
    messages = call.messages
    rendered = _rendered(call, messages, settings)
    tokens = tokens_of(rendered)
    while len(tokens) > context and call.truncate and len(messages) > 1:
        messages = _without_oldest(messages)
        shorter = _rendered(call, messages, settings)
        if shorter == rendered:
            break
        rendered, tokens = shorter, tokens_of(shorter)
    about = conversation_of(call, settings, salt)
    answer = answer_to(_as_read(call, rendered), about)
    told = ""
    if call.format is not None:  # the tail belongs to no word text: what counts is where the model began
        base = rendered[: rendered.rfind("assistant\n") + 10] if "assistant\n" in rendered else rendered
        if not settings.grammar_begins_anew:
            told = rendered[len(base) :]
        tag = conversation_digits(base, about) + (f"x{about.salt}" if about.salt else "")
        answer = Answer(tag, answer.length)
    return Plan(call, rendered, tuple(tokens), context, answer, told, settings.profile.halves_too_long)


def conversation_of(call: Call, settings: PhoneSettings, salt: str) -> Conversation:
    options = call.options
    seed = options.get("seed")
    greedy = options.get("temperature") == 0
    return Conversation(
        identity=call.model.identity,
        sampling="" if greedy or seed is None else f"seed {seed}",
        salt="" if greedy or seed is not None or settings.demo else salt,
        bounds=settings.answer_tokens,
        diverge_after=settings.diverge_after,
        demo=settings.demo,
    )


def _rendered(call: Call, messages: Sequence[Message], settings: PhoneSettings) -> str:
    bos = call.model.bos_text
    if call.kind == "chat":
        return render(messages, settings.template, bos)
    if call.raw and settings.raw == "on":
        return call.prompt
    if call.template:
        system = next((message.content for message in messages if message.role == "system"), "")
        filled = call.template.replace("{{ .System }}", system).replace("{{ .Prompt }}", call.prompt)
        return call.context_text + bos + filled
    turn = render(messages, settings.template, "" if call.context_text else bos)
    return call.context_text + turn


def _as_read(call: Call, rendered: str) -> str:
    """The prompt after the tokenizer: a BOS written in a raw prompt comes on top of the one that the tokenizer adds."""
    bos = call.model.bos_text
    if not bos:
        return rendered
    written = rendered.startswith(bos)
    text = rendered.removeprefix(bos)
    doubled = written and call.raw and call.model.add_bos_token
    missing = not written and call.raw and not call.model.add_bos_token
    return (bos + bos if doubled else "" if missing else bos) + text


def _without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Ollama drops the oldest turns; system messages and the last message stay."""
    for index, message in enumerate(messages[:-1]):
        if message.role != "system":
            return messages[:index] + messages[index + 1 :]
    return messages
