"""Residents over scripted models that all have one size, for tests of who is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from gpu_node.residents import Residents
from tests.gpu_node.serving import WISH, Fleet, Model

CACHE = 1024 * 2  # of a scripted runner
A, B, C = Model("a"), Model("b"), Model("c")
ONE = A.parameters * 2 + CACHE  # what one of them takes


@asynccontextmanager
async def residents_of(fleet: Fleet) -> AsyncIterator[Residents]:
    residents = fleet.residents()
    try:
        yield residents
    finally:
        for script in fleet.scripts.values():
            script.load_gate.set()
        assert await residents.close()


def fleet_of(*models: Model, room_for: float = 10, **more: Any) -> Fleet:
    more.setdefault("wish", replace(WISH, kv_bytes=CACHE))
    return Fleet(models or (A, B, C), budget=int(ONE * room_for), **more)


async def use(residents: Residents, name: str, keep_alive: float | None = None) -> None:
    async with residents.hold(name, keep_alive) as host:
        assert host.ready and host.serves(name)


def loaded(residents: Residents) -> list[str]:
    return sorted(host.name for host in residents.loaded)
