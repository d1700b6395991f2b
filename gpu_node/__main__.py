"""`python -m gpu_node`: reads flags and settings, checks what can be checked without torch, and runs the node.

A person's mistake is one plain sentence and exit code 2. Everything for people goes to stderr; stdout carries only the
line that `--announce-port` asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from gpu_node import __version__
from gpu_node.libraries import share_the_cpu

DESCRIPTION = "Serve models over the HTTP APIs of Ollama and OpenAI, and over Potluck's relay protocol."
EPILOG = (
    "Every flag is also an environment variable: POTLUCK_NODE_MODEL, POTLUCK_NODE_PORT and so on. "
    "The relay's token is VRM_API_TOKEN or POTLUCK_NODE_TOKEN, and no flag, since flags can be seen by others."
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m gpu_node", description=DESCRIPTION, epilog=EPILOG)
    add = made.add_argument
    add("--model", help="default, a name from models/manifest.json, a .gguf file, a safetensors folder, or a hub id")
    add("--host", help="address to listen on (127.0.0.1)")
    add("--port", help="port to listen on; 0 takes any free one (5000)")
    add("--device", help="auto, cpu or cuda")
    add("--dtype", help="auto, float32, bfloat16 or float16")
    add("--weights", help="auto, full, stored, int8 or int4: how weights are held (auto)")
    add("--kernels", help="auto, torch or compiled: what multiplies on a CPU (auto)")
    add("--speculation", help="auto or off: guess tokens that the prompt already holds (auto)")
    add("--memory", help="how much memory models may take together, as 8GB; 0 takes what is free")
    add("--devices", help='auto, or what models are split over: "cuda:0,cuda:1", "cpu:2GiB@1.0,cpu:1GiB@0.5" (auto)')
    add("--split", help="vram, balanced or profiled: how layers are shared out over several devices (balanced)")
    add("--split-goal", help="latency or throughput: what a profiled split makes good (latency)")
    add("--split-layers", help="split by hand: layers of each listed device in turn, as 20,10")
    add("--lend-ratio", help="the most of a device's memory that it lends to others, from 0, none, to 1 (0.7)")
    add("--reclaim-threshold", help="how full a device may be, from 0 to 1, before it takes lent memory back (0.8)")
    add("--kv-memory", help="size of a model's key-value cache, as 2GB; 0 takes what is sensible")
    add("--max-running", help="requests that a model answers at once (32)")
    add("--threads", help="CPU threads for the model; 0 leaves it to torch")
    add("--context", help="longest context in tokens; 0 takes the model's own, at most 8192")
    add("--keep-alive", help="how long an idle model stays in memory: 5m, 90s, -1 for ever (5m)")
    add("--keep-main", action="store_true", default=None, help="the model of --model stays in memory for ever")
    add("--no-relay", action="store_true", default=None, help="serve HTTP only")
    add("--relay-port", help="TCP port of the relay; 0 takes any free one (8765)")
    add("--tls-certificate", help="PEM file: the relay speaks TLS with this certificate and those that vouch for it")
    add("--tls-key", help="PEM file with the certificate's key, where it is not in the same file")
    add("--session-idle", help="a relay client's session that does nothing is freed after: 5m, 90s, -1 never (5m)")
    add("--session-grace", help="how long a session outlives a cut connection (30s)")
    add("--announce", help="auto, on or off: make the node known in its networks (auto)")
    add("--name", help="what the node is called in lists (the machine's name)")
    add("--no-push", action="store_true", default=None, help="relay clients may not send models")
    add("--push-limit", help="what sent models may take on the disk together, as 100GB; 0 takes what is free")
    add("--exit-with-parent", action="store_true", default=None, help="end when stdin reaches its end")
    add("--announce-port", action="store_true", default=None, help="print one JSON line on stdout when listening")
    add("--version", action="version", version=__version__)
    return made


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    given = vars(parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the node tells the same in its own words
    flags = {name: value for name, value in given.items() if value is not None}
    # Only now what takes a while to import: --help and --version are quick.
    from gpu_node.errors import NodeError, UsageError

    try:
        return _serve(environ, flags)
    except NodeError as error:
        print(f"{error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:  # before the node has begun; a running one ends in order, with 0
        return 130


def _serve(environ: Mapping[str, str], flags: Mapping[str, Any]) -> int:
    from gpu_node.libraries import require_libraries
    from gpu_node.settings import read_settings

    settings = read_settings(environ, flags)
    require_libraries()  # before the imports below, some of which need them
    from gpu_node.listening import bind, bind_relay
    from gpu_node.manifest import models_folder
    from gpu_node.model_store import ModelStore
    from gpu_node.node import Node, warn_when_exposed
    from gpu_node.progress import Progress

    store = ModelStore(settings.cache, models_folder(), Progress(sys.stderr))

    async def run() -> int:
        node = Node(settings, store, models_folder())
        with bind(settings.host, settings.port) as listener, bind_relay(settings) or nullcontext() as relay:
            warn_when_exposed(settings)
            return await node.run(listener, relay)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run())


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    share_the_cpu(os.environ)
    sys.exit(main(sys.argv[1:], os.environ))
