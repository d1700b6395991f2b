"""What goes wrong in a soak: every way to fail of the fake phones, at random but repeatable, never on all for long.

One task changes the weather of one phone after the other: calm, one fault for a few requests, a fault of its probes or
renderings, a server that is gone or started anew. Now and then all phones are down for a moment.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.fakes.phone import FakePhone, Fault

_Maker = Callable[[random.Random], Fault]

# Before the first token, in the middle of an answer, and over all of it.
FAULTS: dict[str, _Maker] = {
    "refuse": lambda _: Fault.refuse(),
    "reset before the headers": lambda _: Fault.reset(),
    "reset in the headers": lambda _: Fault.reset_in_headers(),
    "500": lambda _: Fault.error(),
    "503 busy": lambda _: Fault.busy(),
    "429": lambda source: Fault.too_many_requests(source.choice(("", "1"))),
    "hang": lambda _: Fault.hang(),
    "hang after the headers": lambda _: Fault.hang_after_headers(),
    "no HTTP": lambda _: Fault.garbage(),
    "hang after k": lambda source: Fault.hang(source.randint(1, 20)),
    "cut after k": lambda source: Fault.cut(source.randint(0, 20)),
    "half a line": lambda source: Fault.half_line(source.randint(0, 20)),
    "reset after k": lambda source: Fault.reset(source.randint(1, 20)),
    "runner dies": lambda source: Fault.error_line(source.randint(0, 20)),
    "malformed line": lambda source: Fault.malformed_line(source.randint(0, 20)),
    "garbage after k": lambda source: Fault.garbage(source.randint(1, 20)),
    "trickle": lambda _: Fault.trickle(),
    "freeze": lambda source: Fault.freeze(source.uniform(0.05, 0.8), source.randint(0, 10)),
    "wrong model": lambda _: Fault.wrong_model(),
    "flap": lambda source: Fault.flap(source.randint(1, 3), source.randint(1, 2)),
}
_CALM = 0.35
_GONE = 0.06
_RESTART = 0.06
_SIDE = 0.12  # probes or renderings fail, answers do not
_ALL_DOWN_EVERY = 150  # changes


@dataclass(slots=True)
class Weather:
    """Run `blow` as a task over the phones."""

    phones: Sequence[FakePhone]
    seed: int
    pause_seconds: float
    came: Counter[str] = field(default_factory=Counter)
    _source: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._source = random.Random(self.seed)

    async def blow(self) -> None:
        """Until cancelled."""
        changes = 0
        while True:
            changes += 1
            await self._change(self._source.choice(list(self.phones)))
            if changes % _ALL_DOWN_EVERY == 0:
                await self._all_down()
            await asyncio.sleep(self.pause_seconds)

    async def clear_up(self) -> None:
        """The sun shines on every phone."""
        for phone in self.phones:
            phone.heal()
            phone.thaw()
            await phone.start_listening()

    async def _change(self, phone: FakePhone) -> None:
        source = self._source
        phone.heal()
        phone.thaw()
        await phone.start_listening()
        draw = source.random()
        if draw < _CALM:
            self.came["calm"] += 1
        elif draw < _CALM + _GONE:
            self.came["gone"] += 1
            await phone.stop_listening()
        elif draw < _CALM + _GONE + _RESTART:
            self.came["restart"] += 1
            await phone.restart()
        elif draw < _CALM + _GONE + _RESTART + _SIDE:
            paths = source.choice(("probes", "render"))
            self.came[f"{paths} fail"] += 1
            phone.fail(source.choice((Fault.hang(), Fault.error(), Fault.reset())), paths=paths, probability=0.7)
        else:
            self._break(phone)

    def _break(self, phone: FakePhone) -> None:
        source = self._source
        name = source.choice(list(FAULTS))
        self.came[name] += 1
        paths = source.choice(("answers", "answers", "answers", None))
        phone.fail(
            FAULTS[name](source), times=source.randint(1, 12), paths=paths, probability=source.choice((0.4, 1.0))
        )

    async def _all_down(self) -> None:
        """Nobody answers for a moment."""
        self.came["all down"] += 1
        for phone in self.phones:
            await phone.stop_listening()
        await asyncio.sleep(self._source.uniform(0.1, 1.5))
        await self.clear_up()
