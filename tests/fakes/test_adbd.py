"""The fake adb daemon ends what it has begun, however it is ended."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from tests.fakes.adb_server import real_adb_server
from tests.fakes.adbd import FakeAdbd
from tests.fakes.adbd_services import Services, Stream
from tests.fakes.phone import FakePhone


async def swallow(_: bytes) -> None:
    return


@pytest.mark.parametrize("turns", range(6))
async def test_a_way_to_a_port_is_closed_though_its_end_is_cancelled(turns: int) -> None:
    """A connection that stayed open would be a warning, which fails."""
    async with FakePhone() as ollama:
        services, stream = Services("S1", "Pixel", {11434: ollama.port}), Stream(swallow, 65536)
        accepted = asyncio.Event()
        way = asyncio.create_task(services.run("tcp:11434", stream, accepted.set))
        await accepted.wait()
        stream.close()
        for _ in range(turns):
            await asyncio.sleep(0)
        way.cancel()
        await asyncio.gather(way, return_exceptions=True)
        del services, stream, way
        gc.collect()


@pytest.mark.parametrize("turns", range(4))
async def test_a_daemon_that_is_ended_twice_at_once_ends_quietly_and_comes_back(tmp_path: Path, turns: int) -> None:
    async with real_adb_server(tmp_path) as server, FakeAdbd("S1") as adbd:
        await server.link.connect(adbd.address)
        first = asyncio.create_task(adbd.unplug())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(first, adbd.die())
        made = adbd.connections
        await adbd.start()
        await server.link.connect(adbd.address)
        async with asyncio.timeout(60):
            while adbd.connections == made:  # noqa: ASYNC110  # the adb server's own state
                await asyncio.sleep(0.02)
