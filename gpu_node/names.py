"""Model names as Ollama writes them: `:latest` and case do not matter."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*(?::{_PART})?")


def is_valid(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def canonical(name: str) -> str:
    return name.strip().lower().removesuffix(":latest")


def same_model(one: str, other: str) -> bool:
    return canonical(one) == canonical(other)


def name_of_path(stem: str) -> str:
    """A name that clients can write, from a file's or folder's own."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", stem.lower()).strip("-.")
    return name or "model"
