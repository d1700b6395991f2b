"""A real adb server of the test's own, and one trusted phone on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.server.adb.lab import server_fixture

__all__ = ["SERIAL", "phone", "server_fixture"]

SERIAL = "28161FDH2000QX"


@pytest.fixture
async def phone(server: RealAdbServer) -> AsyncIterator[FakeAdbd]:
    async with FakeAdbd(SERIAL) as adbd:
        await server.link.connect(adbd.address)
        yield adbd
