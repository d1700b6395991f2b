"""`potluck adb` over a real adb server and fake phones. They live on the test's event loop, it in a thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.adb import Listed, table
from potluck.cli.adb_pairing import code_text, pair_by_code, pair_by_qr
from potluck.errors import Misuse
from server.adb.plan import Forward
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone
from tests.potluck.cli.conftest import SERIAL


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


def adb(place: str, code: str) -> str:
    """An adb server that pairs with whoever tells 123456."""
    return (
        f"Successfully paired to {place} [guid=x]" if code == "123456" else f"Failed: wrong code for {place} ({code})"
    )


def test_pairing_by_code() -> None:
    assert pair_by_code(adb, "192.168.1.7:37123", " 123456 ").startswith("Successfully paired to 192.168.1.7:37123")
    with pytest.raises(Misuse, match=r"did not pair: Failed: wrong code"):
        pair_by_code(adb, "192.168.1.7:37123", "000000")
    with pytest.raises(Misuse, match="no HOST:PORT"):
        pair_by_code(adb, "--help", "123456")
    with pytest.raises(Misuse, match="six figures"):
        pair_by_code(adb, "192.168.1.7:37123", "1:2")


def test_pairing_by_qr_asks_for_the_service_that_the_code_names(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def find(name: str, _: float) -> str:
        asked.append(name)
        return "192.168.1.7:37123"

    with pytest.raises(Misuse, match=r"wrong code for 192.168.1.7:37123 \([A-Za-z0-9]{12}\)"):
        pair_by_qr(adb, 1.0, find)  # its password is new each time, and this server knows only one
    assert asked[0].startswith("potluck-") and "scan this one" in capsys.readouterr().out
    with pytest.raises(Misuse, match="no phone has scanned it"):
        pair_by_qr(adb, 1.0, lambda _name, _seconds: None)


async def test_the_server_is_asked_to_pair_and_its_own_words_are_shown(
    server: RealAdbServer, unused_tcp_port: int
) -> None:
    result = await run(server, ["pair", f"127.0.0.1:{unused_tcp_port}", "123456"])
    assert result.exit_code == 2
    assert "did not pair: Failed: Unable to start pairing client. Is" in " ".join(result.output.split())
    assert "123456" not in result.output


async def test_a_code_that_is_typed_is_not_shown(server: RealAdbServer, unused_tcp_port: int) -> None:
    words = ["adb", "pair", f"127.0.0.1:{unused_tcp_port}", "--server", f"127.0.0.1:{server.port}"]
    result = await asyncio.to_thread(CliRunner().invoke, app, words, "654321\n")
    assert "did not pair" in result.output and "654321" not in result.output


def test_the_code_is_androids() -> None:
    assert code_text("potluck-a", "secret") == "WIFI:T:ADB;S:potluck-a;P:secret;;"
