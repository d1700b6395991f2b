"""Fleets of the tests' fake phones for measurements, and the fleet file that lists them for a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.phone import FakePhone, PhoneSettings
from tests.fakes.phone_state import PhoneState


class LoopPhone(FakePhone):
    """A phone that lives by the clock of its event loop, so that virtual time is its time too."""

    async def start(self) -> None:
        self._state = PhoneState(self.settings, asyncio.get_running_loop().time)
        await self.start_listening()


@asynccontextmanager
async def phones_of(settings: Iterable[PhoneSettings]) -> AsyncIterator[list[LoopPhone]]:
    """One phone for each, on ports of the kernel's choice; all are stopped at the end."""
    async with AsyncExitStack() as stack:
        phones = [LoopPhone(each) for each in settings]
        for phone in phones:
            await stack.enter_async_context(phone)
        yield phones


def write_fleet(path: Path, ports: Sequence[int], more: Sequence[Mapping[str, Any]] = ()) -> Path:
    """The fleet file of these phones; `more` adds fields to the entries, in order."""
    extra = [*more, *({} for _ in range(len(ports) - len(more)))]
    entries = [
        {"host": "127.0.0.1", "port": port, "name": f"phone-{index}", **fields}
        for index, (port, fields) in enumerate(zip(ports, extra, strict=False))
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
