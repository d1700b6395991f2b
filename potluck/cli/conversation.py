"""A chat as values: what has been said, what a typed line means. Pure but for `save`, which writes a file.

The whole conversation is sent every time, word for word as it was: a node that holds it then reads only what is new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FENCE = '"""'


@dataclass(frozen=True, slots=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True)
class Order:
    """A line that begins with a slash: `/model qwen2.5` is name `model`, argument `qwen2.5`."""

    name: str
    argument: str = ""


class Lines:
    """Typed lines to what they mean. Text between two `\"\"\"` is one message, however many lines it has."""

    def __init__(self) -> None:
        self._open: list[str] | None = None

    @property
    def inside(self) -> bool:
        """A message of several lines has begun and not ended."""
        return self._open is not None

    def receive(self, line: str) -> Say | Order | None:
        """None: nothing yet, or nothing at all."""
        if self._open is None:
            return self._begin(line)
        text, fence, _ = line.partition(FENCE)
        self._open.append(text)
        if not fence:
            return None
        whole = "\n".join(self._open)
        self._open = None
        return Say(whole.strip("\n")) if whole.strip() else None

    def drop(self) -> None:
        """Forget an unfinished message."""
        self._open = None

    def _begin(self, line: str) -> Say | Order | None:
        stripped = line.strip()
        if stripped.startswith(FENCE):
            rest = stripped.removeprefix(FENCE)
            text, fence, _ = rest.partition(FENCE)
            if fence:
                return Say(text.strip()) if text.strip() else None
            self._open = [rest]
            return None
        if stripped.startswith("/"):
            name, _, argument = stripped[1:].partition(" ")
            return Order(name.lower(), argument.strip())
        return Say(stripped) if stripped else None


@dataclass(slots=True)
class Conversation:
    """Mutable, owned by one chat. `turns` are alternately the user's and the assistant's."""

    model: str | None = None
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    saved_to: set[Path] = field(default_factory=set)

    def messages(self, said: str) -> list[dict[str, str]]:
        """All that a node has to read to answer what was said now."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns, {"role": "user", "content": said}]

    def keep(self, said: str, answer: str) -> None:
        """Both together or neither: a question without an answer would be read as part of the next one."""
        self.turns += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        self.turns.clear()

    def save(self, path: Path) -> None:
        """JSON for a name that ends in .json, else a text to read. Raises OSError; a strange file is never replaced."""
        path = path.expanduser()
        content = self._as_json() if path.suffix.lower() == ".json" else self._as_text()
        with path.open("w" if path.resolve() in self.saved_to else "x", encoding="utf-8") as file:
            file.write(content)
        self.saved_to.add(path.resolve())

    def _as_json(self) -> str:
        record: dict[str, Any] = {"model": self.model, "messages": self.messages("")[:-1]}
        return json.dumps(record, ensure_ascii=False, indent=2) + "\n"

    def _as_text(self) -> str:
        return "\n".join(f"{turn['role']}: {turn['content']}\n" for turn in self.messages("")[:-1])
