"""Which local port a phone's forward gets: the same one for the same serial, always. Pure.

A port per serial that never changes keeps forwards from piling up over reconnects and restarts, and lets a later run
of the gateway recognise its own. The range lies below the ports that systems hand out by themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection

FIRST_PORT = 21_434
PORTS = 4_096  # two of fifty phones share their first choice in one lab of four; then one gets the next port
CHOICES = 8  # tried in turn when a port is taken


def preferred_port(serial: str, attempt: int = 0) -> int:
    """The port of this serial; the following ones for further attempts."""
    return FIRST_PORT + (zlib.crc32(serial.encode()) + attempt) % PORTS


def is_choice(serial: str, port: int) -> bool:
    """Is it one of the ports that this serial gets?"""
    return (port - preferred_port(serial)) % PORTS < CHOICES and FIRST_PORT <= port < FIRST_PORT + PORTS


def free_port(serial: str, taken: Collection[int]) -> int | None:
    """The first of the serial's choices that nobody has; None when all are taken."""
    choices = (preferred_port(serial, attempt) for attempt in range(CHOICES))
    return next((port for port in choices if port not in taken), None)
