"""What a fake phone holds: loaded models, the conversations that each has read, and its slots.

One scheduler loads and unloads, in order; while it waits for a model that is still in use, everybody who needs a
load queues up behind it, and past `max_queue` they are refused at once. Requests for a loaded model wait for a slot
without limit and without a byte. Time comes in as `now` wherever something is decided; only `Runner` waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.fakes.phone_settings import FakeModel, PhoneSettings


class Busy(Exception):
    """Too many requests wait for a model to be loaded."""


@dataclass(slots=True)
class ConversationCache:
    """The token sequences most recently read or said, the latest one last."""

    held: list[tuple[str, ...]] = field(default_factory=list)

    def shared(self, tokens: Sequence[str]) -> int:
        """How many of the first tokens are held already."""
        return max((_common(held, tokens) for held in self.held), default=0)

    def store(self, tokens: Sequence[str], bound: int) -> None:
        """Keep this sequence; one that it continues is replaced by it, else the oldest one makes room."""
        kept = tuple(tokens)
        continued = [held for held in self.held if _common(held, kept) >= 0.9 * len(held)]
        self.held = [held for held in self.held if held not in continued]
        self.held.append(kept)
        del self.held[: max(0, len(self.held) - bound)]


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in memory."""

    model: FakeModel
    num_ctx: int
    expires_at: float  # in the phone's clock
    cache: ConversationCache = field(default_factory=ConversationCache)
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    unloading: bool = False  # asked to go while in use: nobody's keep_alive saves it

    @property
    def in_use(self) -> bool:
        return self.running > 0 or bool(self.waiting)


class Runner:
    """The models in memory and the right to use them."""

    def __init__(self, settings: PhoneSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._loaded: dict[str, Loaded] = {}
        self._scheduler = asyncio.Lock()
        self._pending = 0
        self._idle = asyncio.Event()
        self._loading: set[asyncio.Task[tuple[Loaded, float]]] = set()
        self.loads = 0

    def resident(self) -> list[Loaded]:
        """What /api/ps lists, after dropping what has expired."""
        self._expire()
        return list(self._loaded.values())

    @property
    def waiting(self) -> int:
        return self._pending + sum(len(loaded.waiting) for loaded in self._loaded.values())

    def forget(self) -> None:
        """As after a restart: nothing is loaded, nothing is remembered. Those who still run keep their own
        reference.
        """
        self._loaded.clear()
        self._idle.set()

    def kill(self, loaded: Loaded) -> None:
        """The process behind one model has died."""
        if self._loaded.get(loaded.model.full_name) is loaded:
            del self._loaded[loaded.model.full_name]

    async def load(self, model: FakeModel, num_ctx: int | None, keep_alive: float) -> tuple[Loaded, float]:
        """The model in memory with that context, and how long loading took; raises Busy."""
        self._expire()
        found = self._fitting(model, num_ctx)
        if found is not None and not self._scheduler.locked():
            return found, 0.0
        if self._scheduler.locked() and self._pending >= self._settings.max_queue:
            raise Busy
        self._pending += 1
        try:
            await self._scheduler.acquire()
        finally:
            self._pending -= 1
        # A load that has begun goes on when the one who wanted it has left.
        loading = asyncio.get_running_loop().create_task(self._load_in_turn(model, num_ctx, keep_alive))
        self._loading.add(loading)
        loading.add_done_callback(self._loading.discard)
        return await asyncio.shield(loading)

    async def stop(self) -> None:
        """End the loads that nobody waits for any more."""
        for loading in list(self._loading):
            loading.cancel()
        await asyncio.gather(*self._loading, return_exceptions=True)

    async def _load_in_turn(self, model: FakeModel, num_ctx: int | None, keep_alive: float) -> tuple[Loaded, float]:
        try:
            found = self._fitting(model, num_ctx)
            return (found, 0.0) if found is not None else await self._load_anew(model, num_ctx, keep_alive)
        finally:
            self._scheduler.release()

    async def acquire(self, loaded: Loaded) -> None:
        """Wait for a slot; whoever was refused by cancellation leaves no trace."""
        if loaded.running < self._settings.num_parallel and not loaded.waiting:
            loaded.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loaded.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free_slot(loaded)
            else:
                loaded.waiting.remove(turn)
            raise

    def release(self, loaded: Loaded, keep_alive: float) -> None:
        """Give the slot back; the time to live starts again."""
        self._free_slot(loaded)
        self.touch(loaded, keep_alive)

    def touch(self, loaded: Loaded, keep_alive: float) -> None:
        loaded.expires_at = self._clock() + (0.0 if loaded.unloading else keep_alive)
        if not loaded.in_use:
            self._idle.set()

    def unload(self, model: FakeModel) -> None:
        loaded = self._loaded.get(model.full_name)
        if loaded is not None:
            loaded.unloading = True
            self.touch(loaded, 0.0)

    def _free_slot(self, loaded: Loaded) -> None:
        loaded.running -= 1
        while loaded.waiting and loaded.running < self._settings.num_parallel:
            turn = loaded.waiting.popleft()
            if not turn.done():
                loaded.running += 1
                turn.set_result(None)
        self._idle.set()

    def _fitting(self, model: FakeModel, num_ctx: int | None) -> Loaded | None:
        """The model as it is in memory, unless it has another context or its time is over."""
        loaded = self._loaded.get(model.full_name)
        if loaded is None or loaded.num_ctx != (num_ctx or self._settings.num_ctx):
            return None
        over = not loaded.in_use and self._clock() >= loaded.expires_at
        return None if over else loaded

    async def _load_anew(self, model: FakeModel, num_ctx: int | None, keep_alive: float) -> tuple[Loaded, float]:
        while True:
            self._expire()
            victims = self._victims(model)
            if not victims:
                break
            for victim in [victim for victim in victims if not victim.in_use]:
                self._loaded.pop(victim.model.full_name, None)
            if not any(victim.in_use for victim in victims):
                break
            self._idle.clear()
            await self._idle.wait()
        started = self._clock()
        if self._settings.load_seconds > 0:
            await asyncio.sleep(self._settings.load_seconds * self._settings.time_scale)
        self.loads += 1
        now = self._clock()
        loaded = Loaded(model, num_ctx or self._settings.num_ctx, now + keep_alive)
        self._loaded[model.full_name] = loaded
        return loaded, now - started

    def _victims(self, model: FakeModel) -> list[Loaded]:
        """What must go first: the same model with another context, then the longest idle ones beyond the bound."""
        same = [loaded for name, loaded in self._loaded.items() if name == model.full_name]
        others = [loaded for name, loaded in self._loaded.items() if name != model.full_name]
        too_many = len(others) + 1 - self._settings.max_loaded_models
        idle_first = sorted(others, key=lambda loaded: (loaded.in_use, loaded.expires_at))
        return same + idle_first[: max(0, too_many)]

    def _expire(self) -> None:
        now = self._clock()
        lag = self._settings.profile.unload_lag_seconds
        for name, loaded in list(self._loaded.items()):
            if not loaded.in_use and now >= loaded.expires_at + lag:
                del self._loaded[name]
