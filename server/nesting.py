"""How deep JSON may be nested that we must be able to write again. Pure; knows nothing of who sent it."""

from __future__ import annotations

from typing import Any

DEEPEST = 128  # levels: our JSON writer takes 254, and what came is wrapped in a few more on its way


def is_too_deep(value: Any) -> bool:
    """Is this JSON nested deeper than we can write it again? Looks level by level, since recursion has the same end."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def might_be_too_deep(body: bytes) -> bool:
    """A look at the text that spares most bodies the look at their values: they do not open as many brackets."""
    return body.count(b"{") + body.count(b"[") > DEEPEST
