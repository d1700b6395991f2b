"""A GPU node whose model is a script: its real HTTP API and its real relay, in one process, over an engine of no cost.

What an answer costs here is what its way out costs. `python -m bench.rig.relay_node HTTP_PORT RELAY_PORT TOKENS`.
"""

from __future__ import annotations

import sys

import uvicorn

from bench.rig.loops import run
from gpu_node.api.access import rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.listening import bind
from gpu_node.load_wish import LoadWish
from gpu_node.relay.assembly import RelayParts, relay_of
from gpu_node.vram import Account
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, Fleet, ScriptedCatalog
from wire.handshake import ServerTerms

AT_ONCE = 128
MEMORY_BYTES = 4 << 30
WORDS = (" the", " quick", " brown", " fox", " jumps", " over", " a", " dog")


async def serve(http_port: int, relay_port: int, tokens: int) -> None:
    script = Script([WORDS[number % len(WORDS)] for number in range(tokens)])
    wish = LoadWish(max_running=AT_ONCE, kv_bytes=100)
    fleet = Fleet(scripts={NAME: script}, wish=wish, accounts=(Account("cpu", MEMORY_BYTES),), max_waiting=AT_ONCE)
    residents = fleet.residents()
    await residents.start()
    catalog = ScriptedCatalog(fleet.models)
    relay = relay_of(RelayParts(residents, catalog, ServerTerms("bench", None)))
    listener = bind("127.0.0.1", relay_port)
    listener.listen(AT_ONCE)
    listener.setblocking(False)
    relay.start([listener])
    app = build_app(Service(residents, catalog), rules_of((), (), ()))
    config = uvicorn.Config(app, port=http_port, lifespan="off", log_level="error", access_log=False)
    await uvicorn.Server(config).serve()
    await relay.close()
    await residents.close()


if __name__ == "__main__":
    run(serve(*map(int, sys.argv[1:4])))
