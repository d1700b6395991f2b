"""What can go wrong with a fake phone: `Fault` says what, `FaultRule` when. Pure but for the seeded random
generator.

Kinds that strike before an answer: refuse, reset, reset_in_headers, status, hang, garbage. Kinds that strike in it,
after k tokens: hang, cut, half_line, reset, error_line, malformed_line, garbage, freeze. Kinds that colour all of
it: trickle, wrong_model. An answer that does not stream counts as told in the middle of its body.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal[
    "refuse",
    "reset",
    "reset_in_headers",
    "status",
    "hang",
    "hang_after_headers",
    "garbage",
    "cut",
    "half_line",
    "error_line",
    "malformed_line",
    "freeze",
    "trickle",
    "wrong_model",
    "flap",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
BUSY = "server busy, please try again.  maximum pending requests exceeded"

# Names for what a request is about; `render` is a chat or generate call that only renders, `v1` any OpenAI path.
PATHS = ("root", "version", "tags", "ps", "show", "chat", "generate", "render", "embed", "v1", "pull", "other")
PROBES = ("root", "version", "tags", "ps")
ANSWERS = ("chat", "generate", "v1")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. Make it with the named constructors; `after_tokens` None means before the first byte."""

    kind: Kind
    after_tokens: int | None = None
    status: int = 500
    message: str = RUNNER_DIED
    seconds: float = 0.0
    model: str = "another-model:1b"
    up: float = 1
    down: float = 1
    unit: Literal["requests", "seconds"] = "requests"
    retry_after: str = ""

    @staticmethod
    def refuse() -> Fault:
        """The connection is reset as soon as it is made (`stop_listening` refuses it in the kernel)."""
        return Fault("refuse")

    @staticmethod
    def reset(after_tokens: int | None = None) -> Fault:
        """RST before the headers, or after k tokens."""
        return Fault("reset", after_tokens)

    @staticmethod
    def reset_in_headers() -> Fault:
        return Fault("reset_in_headers")

    @staticmethod
    def error(status: int = 500, message: str = RUNNER_DIED, retry_after: str = "") -> Fault:
        """A JSON error instead of an answer."""
        return Fault("status", status=status, message=message, retry_after=retry_after)

    @staticmethod
    def busy() -> Fault:
        return Fault("status", status=503, message=BUSY)

    @staticmethod
    def too_many_requests(retry_after: str = "") -> Fault:
        return Fault("status", status=429, message="too many requests", retry_after=retry_after)

    @staticmethod
    def hang(after_tokens: int | None = None) -> Fault:
        """Accept and never answer, or say k tokens and nothing more."""
        return Fault("hang", after_tokens)

    @staticmethod
    def hang_after_headers() -> Fault:
        return Fault("hang_after_headers", 0)

    @staticmethod
    def cut(after_tokens: int = 0) -> Fault:
        """A chunked body without its end: the connection is closed after k tokens, as when the server dies."""
        return Fault("cut", after_tokens)

    @staticmethod
    def half_line(after_tokens: int = 0) -> Fault:
        """Half of the next line, then a cut."""
        return Fault("half_line", after_tokens)

    @staticmethod
    def error_line(after_tokens: int = 0, message: str = RUNNER_DIED) -> Fault:
        """The runner dies: a last line with an error under status 200, in a well-ended body."""
        return Fault("error_line", after_tokens, message=message)

    @staticmethod
    def malformed_line(after_tokens: int = 0) -> Fault:
        """One line that is no JSON; the stream goes on after it."""
        return Fault("malformed_line", after_tokens)

    @staticmethod
    def garbage(after_tokens: int | None = None) -> Fault:
        """Bytes that are no HTTP, instead of a status line or of a chunk."""
        return Fault("garbage", after_tokens)

    @staticmethod
    def trickle(seconds: float = 0.0) -> Fault:
        """A byte at a time, with that pause between them."""
        return Fault("trickle", seconds=seconds)

    @staticmethod
    def freeze(seconds: float, after_tokens: int = 0) -> Fault:
        """The whole phone stands still, then goes on as if nothing had been (SIGSTOP, SIGCONT)."""
        return Fault("freeze", after_tokens, seconds=seconds)

    @staticmethod
    def wrong_model(model: str = "another-model:1b") -> Fault:
        return Fault("wrong_model", model=model)

    @staticmethod
    def flap(up: float = 1, down: float = 1, unit: Literal["requests", "seconds"] = "requests") -> Fault:
        """Alternately up and down, counted in requests or in seconds; it begins up."""
        return Fault("flap", up=up, down=down, unit=unit)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Fault:
        """For /_control: `{"kind": "cut", "after_tokens": 5}`; raises ValueError or TypeError for unknown names."""
        if value.get("kind") not in KINDS:
            raise ValueError(f"unknown kind of fault: {value.get('kind')}; known: {', '.join(KINDS)}")
        return Fault(**value)

    def is_down(self, count: int, now: float) -> bool:
        at = now if self.unit == "seconds" else count
        return at % (self.up + self.down) >= self.up


@dataclass(slots=True, eq=False)
class FaultRule:
    """When a fault strikes: the next `times` fitting requests (None: always), after `skip` that are spared."""

    fault: Fault
    times: int | None = None
    paths: tuple[str, ...] | None = None
    probability: float = 1.0
    skip: int = 0
    hits: int = 0
    seen: int = 0
    began: float = 0.0

    @property
    def spent(self) -> bool:
        return self.times is not None and self.hits >= self.times


class FaultPlan:
    """The rules in force, the first fitting one first."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.rules: list[FaultRule] = []

    def add(self, rule: FaultRule) -> FaultRule:
        unknown = set(rule.paths or ()) - set(PATHS)
        if unknown:
            raise ValueError(f"unknown path names: {', '.join(sorted(unknown))}; known: {', '.join(PATHS)}")
        self.rules.append(rule)
        return rule

    def remove(self, rule: FaultRule) -> None:
        if rule in self.rules:
            self.rules.remove(rule)

    def clear(self) -> None:
        self.rules.clear()

    def at_accept(self, now: float) -> bool:
        """Whether a new connection is refused before its request is known."""
        for rule in self.rules:
            if rule.paths is not None or rule.fault.kind not in ("refuse", "flap"):
                continue
            if rule.fault.kind == "flap" and rule.fault.unit == "requests":
                continue  # counted when the request comes
            if self._strikes(rule, now) is not None:
                return True
        return False

    def for_request(self, path: str, now: float) -> Fault | None:
        for rule in self.rules:
            if rule.paths is None or path in rule.paths:
                fault = self._strikes(rule, now)
                if fault is not None:
                    return fault
        return None

    def _strikes(self, rule: FaultRule, now: float) -> Fault | None:
        if rule.spent:
            return None
        rule.seen += 1
        if rule.seen <= rule.skip:
            return None
        if rule.probability < 1.0 and self._random.random() >= rule.probability:
            return None
        if rule.fault.kind == "flap":
            if not rule.fault.is_down(rule.seen - rule.skip - 1, now - rule.began):
                return None
            rule.hits += 1
            return Fault.refuse()
        rule.hits += 1
        return rule.fault


def paths_named(names: Iterable[str] | str | None) -> tuple[str, ...] | None:
    """`"probes"` and `"answers"` stand for groups."""
    if names is None:
        return None
    groups = {"probes": PROBES, "answers": ANSWERS}
    listed = (names,) if isinstance(names, str) else tuple(names)
    return tuple(path for name in listed for path in groups.get(name, (name,)))
