"""One phone's state, shared by its handlers: settings, what it holds, what goes wrong, what was counted. No sockets."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from tests.fakes.phone_faults import FaultPlan
from tests.fakes.phone_memory import Runner
from tests.fakes.phone_settings import PhoneSettings

# `context` lists that are remembered, so that a client may send one back.
CONTEXTS_KEPT = 64


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """What reached the phone, for tests of what a gateway sends."""

    name: str  # "chat", "tags", ...: see phone_faults.PATHS
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return orjson.loads(self.body) if self.body else None


@dataclass(slots=True)
class PhoneCounters:
    requests: Counter[str] = field(default_factory=Counter)  # by name of path
    faults: Counter[str] = field(default_factory=Counter)  # by kind
    connections: int = 0  # ever accepted
    open_connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    generating: int = 0  # answers being told right now (slot held)
    max_generating: int = 0
    waiting: int = 0  # for a slot or a load
    answers: int = 0  # told to their end
    cancelled: int = 0  # given up because the client left
    tokens_sent: int = 0
    tokens_read: int = 0  # of prompts, not counting what was held
    loads: int = 0
    refused: int = 0  # 403: foreign Host or Origin

    def as_dict(self) -> dict[str, Any]:
        result = {name: getattr(self, name) for name in self.__slots__}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in result.items()}


class PhoneState:
    def __init__(self, settings: PhoneSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = PhoneCounters()
        self.faults = FaultPlan(settings.seed)
        self.runner = Runner(settings, clock)
        self.log: deque[SeenRequest] = deque(maxlen=settings.log_size)
        self.partial: dict[str, int] = {}  # bytes of downloads that are there, by digest; a restart keeps them
        self.thawed = asyncio.Event()
        self.thawed.set()
        self._random = random.Random(settings.seed ^ 0x5EED)
        self._contexts: OrderedDict[bytes, str] = OrderedDict()
        self._thaw_handle: asyncio.TimerHandle | None = None

    def salt(self) -> str:
        """Four hex digits that make one unseeded answer differ from the next."""
        return f"{self._random.randrange(65536):04x}"

    def freeze(self, seconds: float | None = None) -> None:
        """Stand still, for that long or until `thaw`."""
        self.thaw()
        self.thawed.clear()
        if seconds is not None:
            self._thaw_handle = asyncio.get_running_loop().call_later(seconds, self.thaw)

    def thaw(self) -> None:
        if self._thaw_handle is not None:
            self._thaw_handle.cancel()
            self._thaw_handle = None
        self.thawed.set()

    def remember_context(self, ids: list[int], text: str) -> None:
        self._contexts[_key(ids)] = text
        if len(self._contexts) > CONTEXTS_KEPT:
            self._contexts.popitem(last=False)

    def find_context(self, ids: list[int]) -> str:
        """The text behind a `context`; one of another phone stands for itself, so that it still changes the answer."""
        return self._contexts.get(_key(ids)) or f"[context {_key(ids).hex()}]"

    def forget(self) -> None:
        """What a restart loses."""
        self.runner.forget()
        self._contexts.clear()


def _key(ids: list[int]) -> bytes:
    return blake2b(repr(ids).encode(), digest_size=8).digest()
