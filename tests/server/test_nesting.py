"""How deep JSON may be nested."""

from __future__ import annotations

from typing import Any

import orjson

from server.nesting import DEEPEST, is_too_deep, might_be_too_deep


def nested(levels: int, inner: Any = 1) -> Any:
    for index in range(levels):
        inner = {"a": inner} if index % 2 else [inner, 1]
    return inner


def test_depth():
    assert not is_too_deep(nested(DEEPEST))
    assert is_too_deep(nested(DEEPEST + 1))


def test_no_text_that_is_too_deep_is_passed_over_unseen():
    assert might_be_too_deep(orjson.dumps(nested(DEEPEST + 1)))
    assert not might_be_too_deep(b'{"models":[{"name":"m"}]}')
