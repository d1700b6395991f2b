"""How long one attempt may stay silent, judged by what the node has to do. Pure.

Nothing comes from a phone while it loads a model or reads a prompt, so a fixed limit is either too short for a long
prompt or far too long for a dead phone.
"""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_FACTOR = 3.0  # slower than usual by this much is still alive (a hot phone throttles to a third)
CAUTIOUS_PROMPT_SPEED = 5.0  # tokens/s: the slowest phones, until a node has shown its own speed
CAUTIOUS_SPEED = 1.0
BUFFERED_TOKENS = 256  # of a long tool call, which Ollama sends when it is complete


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds one attempt may stay silent, by phase; and how long it may take in all."""

    connect: float = 5.0
    first_token: float = 60.0
    between_tokens: float = 30.0
    total: float = 3600.0


@dataclass(frozen=True, slots=True)
class PatienceLimits:
    connect_seconds: float = 5.0
    first_token_floor_seconds: float = 5.0
    between_tokens_floor_seconds: float = 5.0
    load_allowance_seconds: float = 120.0
    ceiling_seconds: float = 600.0
    factor: float = PATIENCE_FACTOR
    total_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a node has to do before and between tokens: unread prompt tokens, its learned speeds, a model to load."""

    unread_tokens: int
    prompt_tokens_per_second: float | None
    tokens_per_second: float | None
    must_load: bool
    buffers: bool = False  # a tool call comes in one piece, when it is whole
    shared_by: int = 1  # requests that share the node, this one included


def patience_for(work: Work, limits: PatienceLimits) -> Patience:
    prompt_speed = work.prompt_tokens_per_second or CAUTIOUS_PROMPT_SPEED
    reading = limits.factor * work.shared_by * work.unread_tokens / prompt_speed
    first = reading + limits.first_token_floor_seconds
    if work.must_load:
        first += limits.load_allowance_seconds
    pace = work.shared_by / (work.tokens_per_second or CAUTIOUS_SPEED)
    if work.buffers:
        pace *= BUFFERED_TOKENS
    between = limits.factor * pace + limits.between_tokens_floor_seconds
    return Patience(
        connect=limits.connect_seconds,
        first_token=min(first, limits.ceiling_seconds),
        between_tokens=min(between, limits.ceiling_seconds),
        total=limits.total_seconds,
    )
