"""How a fake phone turns messages into a prompt: ChatML, in three habits.

closed: a last assistant message is closed and the model answers anew, as all templates built into Ollama do. open:
a last assistant message is left open and continued. trimming: open, but the template strips every content, so that
a text which ends in a space is rendered without it. Pure functions of messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from tests.fakes.phone_settings import Template


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    images: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The content as the model sees it: an image is a mark that changes with the image."""
        marks = "".join(f"[img-{blake2b(image.encode(), digest_size=3).hexdigest()}]" for image in self.images)
        return marks + self.content


def joined(messages: Iterable[Message]) -> list[Message]:
    """Consecutive messages of one role become one, with a blank line between, as Ollama does."""
    result: list[Message] = []
    for message in messages:
        if result and result[-1].role == message.role:
            last = result[-1]
            result[-1] = Message(last.role, f"{last.content}\n\n{message.content}", last.images + message.images)
        else:
            result.append(message)
    return result


def render(messages: Sequence[Message], template: Template, bos_text: str = "") -> str:
    parts = [bos_text]
    folded = joined(messages)
    for message in folded:
        content = message.text.strip() if template == "trimming" else message.text
        parts.append(f"<|im_start|>{message.role}\n{content}<|im_end|>\n")
    if template != "closed" and folded and folded[-1].role == "assistant":
        parts[-1] = parts[-1].removesuffix("<|im_end|>\n")
    else:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


TEMPLATE_SOURCES: dict[Template, str] = {
    "closed": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    ),
    "open": (
        "{{- range $i, $m := .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}"
        '{{ if or (ne .Role "assistant") (lt $i (len (slice $.Messages 1))) }}<|im_end|>\n{{ end }}{{ end }}'
        '{{ if ne (index .Messages (len (slice .Messages 1))).Role "assistant" }}<|im_start|>assistant\n{{ end }}'
    ),
    "trimming": (
        "{{- range $i, $m := .Messages }}<|im_start|>{{ .Role }}\n{{ trim .Content }}"
        '{{ if or (ne .Role "assistant") (lt $i (len (slice $.Messages 1))) }}<|im_end|>\n{{ end }}{{ end }}'
        '{{ if ne (index .Messages (len (slice .Messages 1))).Role "assistant" }}<|im_start|>assistant\n{{ end }}'
    ),
}
