"""The gateway's discovery and nothing else of it, as a program: prints a line of JSON for each change of its fleet.

Takes the token from VRM_API_TOKEN and goes when its input ends. `--mode` as in POTLUCK_DISCOVERY.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from server.discovery import Discovery, DiscoveryOptions
from server.nodes import Node
from server.registry import Registry


def tell(_before: Node | None, after: Node | None) -> None:
    if after is not None:
        record = {"name": after.name, "address": after.spec.address, "status": after.status.value}
        print(json.dumps(record), flush=True)


async def run(mode: str) -> None:
    registry = Registry()
    registry.listen(tell)
    token = os.environ.get("VRM_API_TOKEN")
    discovering = asyncio.create_task(Discovery(registry, DiscoveryOptions(mode, token)).run())  # type: ignore[arg-type]
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    discovering.cancel()
    await asyncio.gather(discovering, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="auto")
    asyncio.run(run(parser.parse_args().mode))


if __name__ == "__main__":
    main()
