"""`potluck adb` over a real adb server and fake phones. They live on the test's event loop, it in a thread."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.adb import Listed, table
from potluck.cli.adb_pairing import code_text, pair_by_code, pair_by_qr
from potluck.errors import Misuse
from server.adb.plan import Forward
from tests.fakes.adb_server import RealAdbServer, real_adb_server
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone

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


async def run(server: RealAdbServer, words: Sequence[str]) -> Result:
    arguments = ["adb", *words, "--server", f"127.0.0.1:{server.port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def test_devices_shows_each_phone_its_ports_and_what_to_do(server: RealAdbServer, phone: FakeAdbd) -> None:
    async with FakeAdbd("S2", trust=False) as stranger:
        await server.link.connect(stranger.address)
        await server.link.create(Forward(phone.address, 21999))
        result = await run(server, ["devices"])
    assert result.exit_code == 0, result.output
    assert f"{phone.address}" in result.output and "Pixel 7" in result.output and "21999" in result.output
    assert "tap Allow" in result.output and "potluck adb setup" in result.output


async def test_devices_tells_programs_the_same(server: RealAdbServer, phone: FakeAdbd) -> None:
    async with FakePhone() as ollama:
        phone.services.ports[11434] = ollama.port
        (one,) = json.loads((await run(server, ["devices", "--json"])).stdout)
    assert one["id"] == SERIAL and one["usable"] is True
    assert one["serial"] == phone.address and one["answers"] is True and one["android"] == "14" and not one["problem"]


async def test_no_phone_is_a_sentence_that_helps(server: RealAdbServer) -> None:
    result = await run(server, ["devices"])
    assert result.exit_code == 1 and "USB debugging" in result.output


def test_a_row_cannot_steer_the_terminal() -> None:
    (_, row) = table([Listed("S1", "S1", "Pixel\x1b[2J 7", "device", "", True, (), "")])
    assert "\x1b" not in row


@pytest.fixture
def adb(tmp_path: Path) -> Path:
    """An adb that pairs with whoever tells 123456."""
    program = tmp_path / "adb"
    program.write_text(
        '#!/bin/sh\nread code\nprintf "Enter pairing code: "\n'
        '[ "$code" = 123456 ] && echo "Successfully paired to $4 [guid=x]" || '
        'echo "Failed: wrong code for $4 ($code)"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_pairing_by_code(adb: Path) -> None:
    assert pair_by_code(5037, "192.168.1.7:37123", " 123456 ", adb).startswith(
        "Successfully paired to 192.168.1.7:37123"
    )
    with pytest.raises(Misuse, match=r"did not pair: Failed: wrong code"):
        pair_by_code(5037, "192.168.1.7:37123", "000000", adb)
    with pytest.raises(Misuse, match="no HOST:PORT"):
        pair_by_code(5037, "--help", "123456", adb)


def test_pairing_by_qr_asks_for_the_service_that_the_code_names(adb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def find(name: str, _: float) -> str:
        asked.append(name)
        return "192.168.1.7:37123"

    with pytest.raises(Misuse, match=r"wrong code for 192.168.1.7:37123 \([A-Za-z0-9]{12}\)"):
        pair_by_qr(5037, 1.0, find, adb)  # its password is new each time, and this adb knows only one
    assert asked[0].startswith("potluck-") and "scan this one" in capsys.readouterr().out
    with pytest.raises(Misuse, match="no phone has scanned it"):
        pair_by_qr(5037, 1.0, lambda _name, _seconds: None, adb)


@pytest.mark.parametrize("server", ["192.168.1.2:5037", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:adb"])
def test_a_server_that_cannot_be_meant(server: str) -> None:
    result = CliRunner().invoke(app, ["adb", "devices", "--server", server])
    assert result.exit_code == 2 and result.output.startswith("error: --server is 127.0.0.1 and a port")


def test_the_code_is_androids() -> None:
    assert code_text("potluck-a", "secret") == "WIFI:T:ADB;S:potluck-a;P:secret;;"
