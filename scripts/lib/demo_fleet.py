"""The fleet file of simulated phones: `plan N FILE` picks free ports and writes it, `await FILE PID` waits for them.

Only the standard library, and nothing of the phones but that each one listens on its port.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

FIRST_PORT = 21434  # beside Ollama's own 11434, so that it is plain what these are
START_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["plan", count, file_name]:
            base = free_base(int(count))
            phones = [_phone(number, base) for number in range(int(count))]
            Path(file_name).write_text(json.dumps(phones, indent=2) + "\n", encoding="utf-8")
            print(base)
            return 0
        case ["await", file_name, pid]:
            ports = [phone["port"] for phone in json.loads(Path(file_name).read_text(encoding="utf-8"))]
            return 0 if wait_until_listening(ports, int(pid)) else 1
    print("usage: demo_fleet.py plan N FILE | await FILE PID", file=sys.stderr)
    return 2


def free_base(count: int, first: int = FIRST_PORT) -> int:
    """The first port from which `count` ports in a row are free on loopback."""
    base = first
    while base + count < 65536:
        taken = [port for port in range(base, base + count) if not is_free(port)]
        if not taken:
            return base
        base = taken[-1] + 1
    raise SystemExit(f"error: no {count} free ports in a row")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does: a port that rests after its last connection counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wait_until_listening(ports: list[int], pid: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(ports)
    while waiting and time.monotonic() < deadline and is_alive(pid):
        waiting = [port for port in waiting if not _listens(port)]
        time.sleep(0.05 if waiting else 0)
    return not waiting


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _phone(number: int, base: int) -> dict[str, object]:
    return {"host": "127.0.0.1", "port": base + number, "name": f"demo-phone-{number + 1}", "tags": ["demo"]}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
