"""/api/pull of a fake phone: a download with progress out of `settings.library`, and the ways in which it ends badly.

What was loaded is kept when a pull breaks off, and the next one goes on there, as Ollama does; `partial` of the
state has it. Faults strike it under the path name `pull`, counted in lines of progress.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

from tests.fakes.phone_ollama import go_json
from tests.fakes.phone_requests import Refused, parse_json
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.fakes.phone_telling import NDJSON, Telling

# Beside the weights a model has a template, a licence and a description.
SMALL_LAYERS = (1_482, 11_343, 487)
LINES_PER_LAYER = 10  # of progress, without a speed
LINE_SECONDS = 0.06  # Ollama's own pace


async def answer_pull(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "PullRequest")
    settings, name = telling.state.settings, str(fields.get("model") or fields.get("name") or "")
    if not name or any(character.isspace() for character in name):
        raise Refused(400, "invalid model name")
    telling.begin(NDJSON)
    known, found = settings.model_named(name), _in_library(settings, name)
    if known is not None and found is None:  # as it always was: what is here is up to date
        await _say(telling, {"status": "success"})
    elif found is None:
        await _say(telling, {"error": _missing(settings)})
    else:
        await _pull(telling, found, known)
    await telling.end()


async def _pull(telling: Telling, model: FakeModel, known: FakeModel | None) -> None:
    settings = telling.state.settings
    if settings.pull_error:
        await _say(telling, {"error": f"pull model manifest: {settings.pull_error}"})
        return
    await _say(telling, {"status": "pulling manifest"})
    here = known is not None and known.identity == model.identity
    for digest, size in layers_of(model):
        if not await _layer(telling, digest, size, here):
            return
    for status in ("verifying sha256 digest", "writing manifest"):
        await _say(telling, {"status": status})
    settings.models = (*(one for one in settings.models if one is not known), model)
    for digest, _ in layers_of(model):
        telling.state.partial.pop(digest, None)
    await _say(telling, {"status": "success"})


async def _layer(telling: Telling, digest: str, size: int, here: bool) -> bool:
    """One part of the model; False where it did not find room."""
    settings, partial = telling.state.settings, telling.state.partial
    record: dict[str, Any] = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": size}
    if here:
        partial[digest] = size
    speed = settings.pull_bytes_per_second * LINE_SECONDS
    step = max(1, int(speed) if speed else -(-size // LINES_PER_LAYER))
    while True:
        done = partial.get(digest, 0)
        if settings.free_bytes is not None and done > settings.free_bytes:
            await _say(telling, {"error": f"write /blobs/{digest[:14]}-partial: no space left on device"})
            return False
        await _say(telling, {**record, "completed": done} if done else record, 1)
        if done >= size:
            return True
        if speed:
            await asyncio.sleep(LINE_SECONDS * settings.time_scale)
        partial[digest] = min(size, done + step)


async def _say(telling: Telling, record: dict[str, Any], worth: int = 0) -> None:
    waiting = telling.put(go_json(record) + b"\n", worth)
    if waiting is not None:
        await waiting


def layers_of(model: FakeModel) -> list[tuple[str, int]]:
    """Digest and size of each part, the weights first."""
    parts = [("weights", model.size), *((f"part {size}", size) for size in SMALL_LAYERS)]
    return [(f"sha256:{sha256(f'{model.identity} {part}'.encode()).hexdigest()}", size) for part, size in parts]


def _in_library(settings: PhoneSettings, name: str) -> FakeModel | None:
    wanted = name.casefold() if ":" in name else f"{name.casefold()}:latest"
    return next((model for model in settings.library if model.full_name.casefold() == wanted), None)


def _missing(settings: PhoneSettings) -> str:
    nothing = "file does not exist" if settings.library else "there is no registry behind this phone"
    return f"pull model manifest: {settings.pull_error or nothing}"
