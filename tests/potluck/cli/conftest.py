"""A real adb server of the test's own, and one trusted phone on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.adb_server import RealAdbServer, real_adb_server
from tests.fakes.adbd import FakeAdbd

SERIAL = "28161FDH2000QX"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RealAdbServer]:
    async with real_adb_server(tmp_path) as running:
        yield running


@pytest.fixture
async def phone(server: RealAdbServer) -> AsyncIterator[FakeAdbd]:
    async with FakeAdbd(SERIAL) as adbd:
        await server.link.connect(adbd.address)
        yield adbd
