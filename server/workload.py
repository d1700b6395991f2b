"""How much a node has to read for a request, estimated on the high side: patience must not run out too soon.

Nothing is told before the whole prompt is read, so everything that becomes a prompt counts: messages, system, tools,
images, what is to be embedded. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.exchange import AskRequest

ASCII_PER_TOKEN = 3.0  # English has 4, code and names have fewer
BYTES_PER_TOKEN = 1.5  # of everything else: a Chinese character has 3 bytes, an emoji 4
IMAGE_TOKENS = 1500  # common vision models make 256 to 1,500 of one picture
MESSAGE_TOKENS = 8  # role markers around each
TEXT_FIELDS = ("system", "template", "suffix")


def reading_tokens(request: AskRequest) -> int:
    """Tokens that the node may have to read before it tells the first one."""
    fields = request.fields
    tokens = text_tokens(request.prompt) + IMAGE_TOKENS * len(fields.get("images") or ())
    for message in request.messages:
        tokens += MESSAGE_TOKENS + _message_tokens(message)
    for name in TEXT_FIELDS:
        if isinstance(fields.get(name), str):
            tokens += text_tokens(fields[name])
    if fields.get("tools"):
        tokens += text_tokens(orjson.dumps(fields["tools"]).decode())
    given = fields.get("input") or ()
    tokens += sum(text_tokens(text) for text in ([given] if isinstance(given, str) else given) if isinstance(text, str))
    return tokens + len(fields.get("context") or ())


def _message_tokens(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    tokens = text_tokens(content) if isinstance(content, str) else 0
    if message.get("tool_calls"):
        tokens += text_tokens(orjson.dumps(message["tool_calls"]).decode())
    return tokens + IMAGE_TOKENS * len(message.get("images") or ())


def text_tokens(text: str) -> int:
    """The most tokens that a text is likely to have."""
    if text.isascii():
        return round(len(text) / ASCII_PER_TOKEN)
    plain = len(text.encode("ascii", "ignore"))
    others = len(text.encode("utf-8", "replace")) - plain
    return round(plain / ASCII_PER_TOKEN + others / BYTES_PER_TOKEN)


def told_tokens(text: str, counted: int = 1) -> int:
    """How many tokens a told piece may have held. A node joins tokens while a stop string may be beginning: several
    words in one piece were several tokens."""
    return max(counted, len(text.split())) if len(text) > 1 else counted
