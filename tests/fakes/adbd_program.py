"""A fake adb daemon as a program of its own, for a phone that lives in a network namespace; orders come by stdin.

    python -m tests.fakes.adbd_program SERIAL --host 10.78.0.3 --ollama-port 11434

Its first line is its address. An order is one line of JSON, and is carried out when the line `ok` comes back:
{"battery": {"celsius": 45}}, {"heat": 3}, {"unplug": true}, {"plug": true}, {"save": FOLDER} (what was pushed to
/sdcard, written there). The end of stdin is its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.fakes.adbd import FakeAdbd

OLLAMA_PORT = 11434
SHARED = "/sdcard/"


async def obey(adbd: FakeAdbd, order: dict[str, Any]) -> None:
    match order:
        case {"battery": told}:
            adbd.services.tell_battery(**told)
        case {"heat": status}:
            adbd.services.tell_heat(status)
        case {"unplug": True}:
            await adbd.die()
        case {"plug": True}:
            await adbd.start()
        case {"save": folder}:
            await asyncio.to_thread(save, adbd, Path(folder))
        case _:
            raise ValueError(f"unknown order {order}")


def save(adbd: FakeAdbd, folder: Path) -> None:
    for name, content in adbd.services.files.items():
        if name.startswith(SHARED) and not name.endswith("/"):
            path = folder / name.removeprefix(SHARED)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("serial")
    parser.add_argument("--model", default="Pixel 7")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ollama-port", type=int, default=OLLAMA_PORT)
    given = parser.parse_args()
    ports = {OLLAMA_PORT: given.ollama_port}
    async with FakeAdbd(given.serial, model=given.model, ports=ports, host=given.host) as adbd:
        print(adbd.address, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await obey(adbd, json.loads(line))
            print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
