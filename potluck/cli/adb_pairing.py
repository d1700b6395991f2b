"""Pairing with a phone's wireless debugging: by the code that it shows, or by a QR code that it scans.

The phone that has scanned the code announces itself by mDNS under the name that was in it; then the adb server pairs.
The server is asked directly: a program's arguments are there for everybody to read, and adb's own restarts a server of
another protocol number. Name and password are made anew each time and worth nothing afterwards. Format of the code:
Android's AdbQrCode.
"""

from __future__ import annotations

import queue
import re
import secrets
import string
import sys
from collections.abc import Callable

import typer

from potluck.cli.qr_code import drawn
from potluck.errors import Misuse

PAIRING = "_adb-tls-pairing._tcp.local."
PAIR_SECONDS = 30.0
PASSWORD_LENGTH = 12
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")
_PLACE = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")

Pair = Callable[[str, str], str]  # a place and its code -> the adb server's words
Find = Callable[[str, float], str | None]  # a service's name and the patience -> its place


def pair_by_code(pair: Pair, place: str, code: str) -> str:
    """What adb says of its success. Raises Misuse."""
    if not _PLACE.fullmatch(place):
        raise Misuse(f"{place!r} is no HOST:PORT; the phone shows it under 'Pair device with pairing code'")
    if not _CODE.fullmatch(code.strip()):
        raise Misuse("the pairing code is the six figures that the phone shows")
    said = pair(place, code.strip())
    if "Successfully paired" not in said:
        raise Misuse(
            f"{place} did not pair: {said.rstrip('. ') or 'no reason given'}. Is the code right, are this computer and"
            " the phone in one network? The port changes each time that the phone shows a code"
        )
    return said


def pair_by_qr(pair: Pair, seconds: float, find: Find | None = None) -> str:
    """Show the code, wait for the phone that scans it, pair. Raises Misuse."""
    name, password = _fresh("potluck-", 8), _fresh("", PASSWORD_LENGTH)
    typer.echo(drawn(code_text(name, password), sys.stdout.encoding))
    typer.echo("On the phone: Developer options, Wireless debugging, Pair device with QR code; scan this one.")
    place = (find or find_service)(name, seconds)
    if place is None:
        raise Misuse(f"no phone has scanned it within {seconds:g} s; with a code instead: potluck adb pair HOST:PORT")
    return pair_by_code(pair, place, password)


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
