"""Ports for programs that must be told one before they listen, and serials whose forwards meet nobody else's.

A port that the system hands out is handed out again to the next who asks, also as a caller's own end of a connection;
these lie below its range, and each process of a test run takes them in turn from a part of its own. So do the local
ports that phones on cables get by their serials.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

from server.adb.ports import FIRST_PORT, preferred_port

FIRST, PORTS_EACH, PROCESSES = 26_000, 400, 16  # up to 32399; Linux hands out from 32768 on
SERIAL_PORTS_EACH = 64  # of the first thousand; those that many phones at once want lie behind them
OWN_SERIAL_PORTS = SERIAL_PORTS_EACH * PROCESSES

_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
_order = itertools.count(random.SystemRandom().randrange(PORTS_EACH))


def free_port() -> int:
    """Nobody listens there, and nobody who asks here gets it again soon."""
    for number in itertools.islice(_order, PORTS_EACH):
        port = FIRST + _process * PORTS_EACH + number % PORTS_EACH
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")


def own_serial(stem: str) -> str:
    """A serial of the phones of this process alone: its local port and the next ones are nobody else's choice."""
    first = FIRST_PORT + _process * SERIAL_PORTS_EACH
    wanted = range(first, first + SERIAL_PORTS_EACH // 2)
    return next(serial for n in itertools.count() if preferred_port(serial := f"{stem}{n:X}") in wanted)


def lab_serials(count: int) -> list[str]:
    """Of many phones at once, whose ports are none of `own_serial`'s."""
    serials = (f"LAB{number:03}" for number in itertools.count())
    free = (serial for serial in serials if preferred_port(serial) >= FIRST_PORT + OWN_SERIAL_PORTS)
    return list(itertools.islice(free, count))
