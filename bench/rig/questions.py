"""Questions for a soak: all dialects, whole and streamed, with what each must be answered. Pure, from a seeded source.

A question knows the messages or the prompt as a phone sees them, so that the right answer can be computed; the body is
the same in the words of one dialect.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

Way = Literal["ask", "ask_stream", "ask_events", "chat", "generate", "openai"]

GROUPS = ("open", "closed", "trimming")  # templates; a model of each, since a template is a part of what a digest names
_WAYS: tuple[tuple[Way, bool], ...] = (
    ("ask", False),
    ("ask_stream", True),
    ("ask_stream", True),
    ("ask_events", True),
    ("chat", True),
    ("chat", False),
    ("generate", True),
    ("generate", False),
    ("openai", True),
    ("openai", False),
)
_PATHS: dict[Way, str] = {
    "ask": "/ask",
    "ask_stream": "/ask_stream",
    "ask_events": "/ask_stream",
    "chat": "/api/chat",
    "generate": "/api/generate",
    "openai": "/v1/chat/completions",
}
_TEXTS = ("tell me more", "dlaczego?", "and then", "漢字 please", "list\nthree", "why 😀 so", "  spaced  ", "ok")


def model_of(group: str) -> str:
    return f"{group}-model:1b"


@dataclass(frozen=True, slots=True)
class Question:
    """One request and what is needed to judge its answer."""

    way: Way
    stream: bool
    body: dict[str, Any]
    group: str | None  # None: any model may answer
    messages: tuple[dict[str, str], ...] | None
    prompt: str | None
    options: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)  # format, raw, system: as the phone gets them
    leaves_after: float | None = None  # seconds, or for streams a number of pieces; then the client is gone

    @property
    def path(self) -> str:
        return _PATHS[self.way]

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": "text/event-stream"} if self.way == "ask_events" else {}


class Questions:
    """An endless, repeatable supply."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self._number = 0

    def next(self) -> Question:
        source = self._source
        self._number += 1
        way, stream = source.choice(_WAYS)
        named = way in ("chat", "generate", "openai") or source.random() < 0.6
        group = source.choice(GROUPS) if named else None
        options = self._options()
        if way == "generate":
            return self._generate(stream, group or GROUPS[0], options)
        messages = self._messages(options)
        fields = {"format": "json"} if options.get("temperature") == 0 and source.random() < 0.08 else {}
        if way == "openai" or "stop" in options:
            fields = {}
        body = _body(way, stream, group, messages, options, fields)
        return Question(way, stream, body, group, messages, None, options, fields, self._leaves(stream))

    def _options(self) -> dict[str, Any]:
        source = self._source
        options: dict[str, Any] = {}
        draw = source.random()
        if draw < 0.5:
            options["temperature"] = 0
        elif draw < 0.7:
            options["seed"] = source.randrange(1000)
        if source.random() < 0.15:
            options["num_predict"] = source.randint(1, 30)
        if source.random() < 0.1:
            options["stop"] = [f"w{source.randint(3, 20)}-"]
        return options

    def _messages(self, options: dict[str, Any]) -> tuple[dict[str, str], ...]:
        source = self._source
        messages = [{"role": "system", "content": "You are brief."}] if source.random() < 0.3 else []
        repeated = options == {"temperature": 0} and source.random() < 0.1
        about = f"popular {source.randrange(20)}" if repeated else f"number {self._number}"
        messages.append({"role": "user", "content": f"Question {about}: {source.choice(_TEXTS)}"})
        for _ in range(source.choice((0, 0, 0, 1, 2))):
            messages.append({"role": "assistant", "content": f"Said {source.randrange(100)}. {source.choice(_TEXTS)}"})
            messages.append({"role": "user", "content": source.choice(_TEXTS)})
        if source.random() < 0.03:
            messages.append({"role": "assistant", "content": "Sure, here is"})
        return tuple(messages)

    def _generate(self, stream: bool, group: str, options: dict[str, Any]) -> Question:
        source = self._source
        raw = source.random() < 0.2
        prompt = f"Prompt {self._number}: {source.choice(_TEXTS)}"
        fields: dict[str, Any] = {"raw": True} if raw else {}
        if not raw and source.random() < 0.3:
            fields["system"] = "You are brief."
        body = {"model": model_of(group), "prompt": prompt, "stream": stream, **fields}
        if options:
            body["options"] = options
        return Question("generate", stream, body, group, None, prompt, options, fields, self._leaves(stream))

    def _leaves(self, stream: bool) -> float | None:
        if self._source.random() >= 0.08:
            return None
        return float(self._source.randint(0, 6)) if stream else self._source.uniform(0.0, 0.06)


def _body(
    way: Way,
    stream: bool,
    group: str | None,
    messages: tuple[dict[str, str], ...],
    options: dict[str, Any],
    fields: dict[str, Any],
) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": list(messages), **fields}
    if group is not None:
        body["model"] = model_of(group)
    if way in ("ask", "ask_stream", "ask_events"):
        return body | options
    body["stream"] = stream
    if way == "chat":
        return body | ({"options": options} if options else {})
    renamed = {"max_tokens" if name == "num_predict" else name: value for name, value in options.items()}
    return body | renamed
