"""Pairing with a phone's wireless debugging: by the code that it shows, or by a QR code that it scans.

The phone that has scanned the code announces itself by mDNS under the name that was in it; then the pinned adb program
pairs, since adbutils cannot. Name and password are made anew each time and worth nothing afterwards. Format of the
code: Android's AdbQrCode.
"""

from __future__ import annotations

import queue
import re
import secrets
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from potluck.cli.qr_code import drawn
from potluck.errors import Misuse

PAIRING = "_adb-tls-pairing._tcp.local."
PAIR_SECONDS = 30.0
PASSWORD_LENGTH = 12
_PLACE = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")

Find = Callable[[str, float], str | None]  # a service's name and the patience -> its place


def pair_by_code(port: int, place: str, code: str, program: Path | None = None) -> str:
    """What adb says of its success. Raises Misuse."""
    from server.adb.binary import NO_BINARY, adb_binary

    if not _PLACE.fullmatch(place):
        raise Misuse(f"{place!r} is no HOST:PORT; the phone shows it under 'Pair device with pairing code'")
    used = program or adb_binary()
    if used is None:
        raise Misuse(NO_BINARY)
    try:
        # The code goes by stdin: a command line is there for everybody to read.
        done = subprocess.run(
            [str(used), "-P", str(port), "pair", place],
            input=f"{code.strip()}\n", capture_output=True, text=True, timeout=PAIR_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Misuse(f"{place} did not answer: are this computer and the phone in one network?") from None
    said = (done.stdout + done.stderr).removeprefix("Enter pairing code: ").strip()
    if "Successfully paired" not in said:
        raise Misuse(f"{place} did not pair: {said or 'no reason given'}. Pairing ports change each time it is opened")
    return said


def pair_by_qr(port: int, seconds: float, find: Find | None = None, program: Path | None = None) -> str:
    """Show the code, wait for the phone that scans it, pair. Raises Misuse."""
    name, password = _fresh("potluck-", 8), _fresh("", PASSWORD_LENGTH)
    typer.echo(drawn(code_text(name, password), sys.stdout.encoding))
    typer.echo("On the phone: Developer options, Wireless debugging, Pair device with QR code; scan this one.")
    place = (find or find_service)(name, seconds)
    if place is None:
        raise Misuse(f"no phone has scanned it within {seconds:g} s; with a code instead: potluck adb pair HOST:PORT")
    return pair_by_code(port, place, password, program)


def code_text(name: str, password: str) -> str:
    """What the QR code says."""
    return f"WIFI:T:ADB;S:{name};P:{password};;"


def find_service(name: str, seconds: float) -> str | None:
    """Where the phone announces itself under this name; None if it does not in time."""
    from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

    found: queue.Queue[str] = queue.Queue()

    class Listener(ServiceListener):
        def add_service(self, zeroconf: Zeroconf, kind: str, full: str) -> None:
            info = zeroconf.get_service_info(kind, full) if full.startswith(f"{name}.") else None
            if info is not None and info.port and (addresses := info.parsed_addresses()):
                host = addresses[0]
                found.put(f"[{host}]:{info.port}" if ":" in host else f"{host}:{info.port}")

        def update_service(self, zeroconf: Zeroconf, kind: str, full: str) -> None:
            self.add_service(zeroconf, kind, full)

        def remove_service(self, zeroconf: Zeroconf, kind: str, full: str) -> None:
            pass

    with Zeroconf() as zeroconf:
        ServiceBrowser(zeroconf, PAIRING, Listener())
        try:
            return found.get(timeout=seconds)
        except queue.Empty:
            return None


def _fresh(prefix: str, length: int) -> str:
    letters = string.ascii_letters + string.digits
    return prefix + "".join(secrets.choice(letters) for _ in range(length))
