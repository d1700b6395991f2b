"""How fast one node is with each of its models: what it has shown, else reckoned from another model of the same node.

A phone that mostly runs a large model is no slower than its twin that runs a small one, so each model has figures of
its own. One that has not been seen yet is reckoned by size: all weights are read for each token, and multiplied for
each token of a prompt. Pure; `now` is an argument. Knows neither nodes nor routing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from server.care import Pace

MOST_MODELS = 32  # of one node; the one that was used longest ago makes room
FURTHEST = 16.0  # no reckoning over more than this between two sizes: small models are slowed by other things


@dataclass(slots=True)
class Speed:
    """What one model has shown on one node. None: not yet."""

    size_bytes: int  # 0: the node does not tell
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    pace: Pace = field(default_factory=Pace)

    def tokens_per_second_at(self, now: float) -> float | None:
        """None also for what is too old to count."""
        return None if self.pace.is_forgotten(now) else self.tokens_per_second


@dataclass(slots=True)
class Speeds:
    """The models of one node, the one that was used last at the end."""

    by_model: dict[str, Speed] = field(default_factory=dict)

    def of(self, model: str) -> Speed | None:
        return self.by_model.get(model)

    def used(self, model: str, size_bytes: int) -> Speed:
        """The record of a model that has just been used, to be written to. Another size is another model."""
        speed = self.by_model.pop(model, None)
        if speed is None or speed.size_bytes != size_bytes:
            speed = Speed(size_bytes)
            if len(self.by_model) >= MOST_MODELS:
                del self.by_model[next(iter(self.by_model))]
        self.by_model[model] = speed
        return speed

    def writing(self, model: str, size_bytes: int, now: float) -> float | None:
        """Tokens/s of the model, shown or reckoned; None where neither is possible."""
        speed = self.by_model.get(model)
        shown = None if speed is None else speed.tokens_per_second_at(now)
        if shown:
            return shown
        return self._reckoned(size_bytes, lambda other: other.tokens_per_second_at(now))

    def reading(self, model: str, size_bytes: int) -> float | None:
        """Prompt tokens/s, likewise."""
        speed = self.by_model.get(model)
        shown = None if speed is None else speed.prompt_tokens_per_second
        if shown:
            return shown
        return self._reckoned(size_bytes, lambda other: other.prompt_tokens_per_second)

    def first_token(self, model: str) -> float | None:
        """Seconds until the first token came, where it has been seen: it hangs on too much to be reckoned."""
        speed = self.by_model.get(model)
        return None if speed is None else speed.first_token_seconds

    def _reckoned(self, size_bytes: int, read: Callable[[Speed], float | None]) -> float | None:
        """From the other model that was used last: it knows how hot the phone is."""
        for other in reversed(self.by_model.values()):
            known = read(other)
            if known and other.size_bytes > 0 and size_bytes > 0:
                return known * times_as_fast(size_bytes, other.size_bytes)
        return None


def times_as_fast(size_bytes: int, than_bytes: int) -> float:
    """How many times as fast a model of one size is as one of another; both are known."""
    return min(max(than_bytes / size_bytes, 1 / FURTHEST), FURTHEST)
