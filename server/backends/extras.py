"""What an answer tells besides its text, none of it believed unseen: tool calls and log-probabilities. Pure.

Raises TypeError for what is none; the callers make a `NodeBroken` of it. Dialects take these records apart and write
them anew, so one of a foreign shape would be a fault of ours there.
"""

from __future__ import annotations

from typing import Any

from server.nesting import is_too_deep


def tool_calls(value: Any) -> tuple[dict[str, Any], ...]:
    """Ollama's: each a function with a name, and arguments as an object or a text."""
    for call in _records(value, "tool calls"):
        function = call.get("function")
        if type(function) is not dict or type(function.get("name", "")) is not str:
            raise TypeError("a tool call without a function")
        if type(function.get("arguments", {})) not in (dict, str):
            raise TypeError("a tool call with arguments that are neither an object nor text")
    return tuple(value or ())


def logprobs(value: Any) -> tuple[dict[str, Any], ...]:
    """One record a token, each perhaps with records of the tokens that were likely there."""
    for entry in _records(value, "logprobs"):
        for token in (entry, *_records(entry.get("top_logprobs"), "top_logprobs")):
            if type(token.get("token", "")) is not str:
                raise TypeError("logprobs of a token that is no text")
    return tuple(value or ())


def _records(value: Any, name: str) -> list[dict[str, Any]]:
    if not value:
        return []
    if type(value) is not list or not all(type(one) is dict for one in value):
        raise TypeError(f"{name} that are no list of objects")
    if is_too_deep(value):
        raise TypeError(f"{name} that are nested too deeply")
    return value
