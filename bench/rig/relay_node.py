"""A GPU node whose model is a script: its real HTTP API and its real relay, in one process, over an engine of no cost.

What an answer costs here is what its way out costs. All answers get their tokens in the same steps, as an engine with
continuous batching gives them. `python -m bench.rig.relay_node HTTP_PORT RELAY_PORT TOKENS STEPS_PER_SECOND`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence

import uvicorn

from bench.rig.loops import run
from gpu_node.api.access import rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.engine.sequence import Done, Event, GenerationRequest
from gpu_node.engine.step import ModelRunner
from gpu_node.host import HostedEngine, ModelHost, Stay
from gpu_node.listening import bind
from gpu_node.load_wish import LoadWish
from gpu_node.model_source import ModelSource
from gpu_node.relay.assembly import RelayParts, relay_of
from gpu_node.vram import Account
from tests.gpu_node.scripted import Script, ScriptedEngine, ScriptedRunner
from tests.gpu_node.serving import DESCRIPTION, NAME, Files, Fleet, ScriptedCatalog
from wire.handshake import ServerTerms

AT_ONCE = 128
MEMORY_BYTES = 4 << 30
WORDS = (" the", " quick", " brown", " fox", " jumps", " over", " a", " dog")


class Steps:
    """Wakes everybody at once, so many times a second; 0: whenever somebody waits."""

    def __init__(self, per_second: float) -> None:
        self._seconds = 1 / per_second if per_second else 0.0
        self._next: asyncio.Future[None] | None = None

    async def next(self) -> None:
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            # on a raster, as steps follow each other whatever becomes of their tokens
            loop.call_later(self._seconds - loop.time() % self._seconds if self._seconds else 0, self._step)
        await asyncio.shield(self._next)

    def _step(self) -> None:
        waited, self._next = self._next, None
        if waited is not None:
            waited.set_result(None)


class SteppedEngine(ScriptedEngine):
    def __init__(self, load: Callable[[], ModelRunner], script: Script, steps: Steps) -> None:
        super().__init__(load, script, AT_ONCE)
        self._steps = steps

    async def _answer(self, request: GenerationRequest, ids: Sequence[int]) -> AsyncGenerator[Event, None]:
        words = self.script.words
        for word in words:
            await self._steps.next()
            yield self._token(request, word, 0)
        yield Done("stop", len(ids), len(words), 5_000, 7_000, tuple(ids))


class SteppedFleet(Fleet):
    steps: Steps

    def build(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        files = Files(DESCRIPTION, lambda wish: ScriptedRunner(1000, blocks=1024))

        def engine(load: Callable[[], ModelRunner], wish: LoadWish) -> HostedEngine:
            return SteppedEngine(load, self.script(NAME), self.steps)

        return ModelHost((NAME,), files, engine, wish, Stay(300.0, AT_ONCE))


async def serve(http_port: int, relay_port: int, tokens: int, per_second: int) -> None:
    script = Script([WORDS[number % len(WORDS)] for number in range(tokens)])
    wish = LoadWish(max_running=AT_ONCE, kv_bytes=100)
    fleet = SteppedFleet(scripts={NAME: script}, wish=wish, accounts=(Account("cpu", MEMORY_BYTES),))
    fleet.steps = Steps(per_second)
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
    run(serve(*map(int, sys.argv[1:5])))
