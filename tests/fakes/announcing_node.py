"""A node that is nothing but its announcements, as a program: `python -m tests.fakes.announcing_node --host 0.0.0.0`.

Takes the token from VRM_API_TOKEN, says "ready" when it can be found, and leaves when its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time

from gpu_node.announce import AnnounceOptions, Announcer
from gpu_node.announcement import RelayPlace, Standing
from gpu_node.identity import Identity
from transport.beacons import DISCOVERY_PORT


async def run(arguments: argparse.Namespace) -> None:
    identity = Identity(arguments.name, secrets.token_bytes(16), time.time_ns() // 1_000_000)
    standing = Standing(("smollm2:135m", "qwen2.5:7b"), 18 << 30, 24 << 30, 0.25)
    options = AnnounceOptions(arguments.udp_port, mdns=arguments.mdns)
    place = RelayPlace(arguments.host, arguments.port)
    announcer = Announcer(identity, place, lambda: standing, os.environ.get("VRM_API_TOKEN"), options)
    await announcer.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await announcer.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--udp-port", type=int, default=DISCOVERY_PORT)
    parser.add_argument("--name", default="tower")
    parser.add_argument("--mdns", action="store_true")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
