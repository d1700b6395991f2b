"""The programmable phone as what the fake Termux's `ollama serve` becomes, where a test wants answers like Ollama's.

    python -m tests.fakes.whole_ollama HOST PORT      with $FAKE and $HOME, see tests/fakes/termux

Its settings are the JSON object in $FAKE/whole_ollama, its models the manifests below $HOME/.ollama/models; a pull
brings any model that is asked for, in a few steps. `/_control` answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from tests.fakes.phone import FakeModel, FakePhone, PhoneSettings
from tests.fakes.phone_http import Exchange
from tests.fakes.phone_ollama import go_json
from tests.fakes.phone_telling import NDJSON, Ended, Telling

LIBRARY = Path(os.environ.get("HOME", "/")) / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library"
DOWNLOAD_BYTES = 40_000_000
STEPS = 4


def models_in(library: Path) -> tuple[FakeModel, ...]:
    return tuple(FakeModel(f"{path.parent.name}:{path.name}") for path in sorted(library.glob("*/*")))


class WholeOllama(FakePhone):
    """A phone that can pull, and keeps what it has pulled."""

    async def _serve(self, exchange: Exchange) -> None:
        if exchange.request.path != "/api/pull":
            await super()._serve(exchange)
            return
        try:
            await self._pull(exchange)
        except Ended:
            return

    async def _pull(self, exchange: Exchange) -> None:
        telling = Telling(self.state, exchange, None)
        fields = json.loads(exchange.request.body)
        model = FakeModel(fields.get("model") or fields["name"])
        telling.begin(NDJSON)
        await telling.line(go_json({"status": "pulling manifest"}) + b"\n")
        for step in range(STEPS + 1):
            done = DOWNLOAD_BYTES * step // STEPS
            record = {"status": "pulling 5ee4f07cdb9b", "digest": f"sha256:{model.identity}", "total": DOWNLOAD_BYTES}
            await telling.line(go_json(record | {"completed": done}) + b"\n")
        self._keep(model)
        await telling.end(go_json({"status": "success"}) + b"\n")

    def _keep(self, model: FakeModel) -> None:
        name, _, tag = model.full_name.partition(":")
        path = LIBRARY / name / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        self.settings.models = models_in(LIBRARY)


async def main(host: str, port: int) -> None:
    told = json.loads((Path(os.environ["FAKE"]) / "whole_ollama").read_text())
    if "answer_tokens" in told:
        told["answer_tokens"] = tuple(told["answer_tokens"])
    settings = PhoneSettings(**told, models=models_in(LIBRARY), control=True, check_origin=False)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with WholeOllama(settings, host=host, port=port):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
