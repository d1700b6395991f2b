"""The official clients of OpenAI and Ollama against the real engine on a runner without torch, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ollama
import openai
import pytest

from gpu_node.api.access import rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.step import ModelRunner
from gpu_node.host import HostedEngine, ModelFiles, ModelHost, Progress, Stay
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription
from gpu_node.model_source import ModelSource
from gpu_node.residents import Residents
from tests.fakes.scripted_runner import ScriptedRunner
from tests.gpu_node.serving import DESCRIPTION, NAME, Fleet, ScriptedCatalog, listening, until_true

SLOTS = 32
WISH = LoadWish(max_running=SLOTS, kv_bytes=10**6)
USER: Any = {"role": "user", "content": "q"}


class RealFiles:
    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    async def prepare(self) -> ModelDescription:
        return DESCRIPTION

    def load(self, description: ModelDescription, wish: LoadWish, progress: Progress) -> ModelRunner:
        return self._runner


class RealFleet(Fleet):
    runner: ScriptedRunner

    def build(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        def engine(load: Callable[[], ModelRunner], wish: LoadWish) -> HostedEngine:
            return Engine(load, options=EngineOptions(max_running=SLOTS, max_waiting=64))

        files: ModelFiles = RealFiles(self.runner)
        return ModelHost((NAME, "default"), files, engine, wish, Stay(300, 64))


class Clients:
    def __init__(self, residents: Residents, port: int, runner: ScriptedRunner) -> None:
        self.residents, self.runner = residents, runner
        self.openai = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        self.ollama = ollama.AsyncClient(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def clients(blocks: int = 4096) -> AsyncIterator[Clients]:
    fleet = RealFleet(wish=WISH)
    fleet.runner = ScriptedRunner(blocks=blocks, block_tokens=16)
    residents = fleet.residents()
    app = build_app(Service(residents, ScriptedCatalog(fleet.models)), rules_of((), (), ()))
    async with listening(app, residents.stop) as (_, port, _server):
        made = Clients(residents, port, fleet.runner)
        try:
            yield made
        finally:
            await made.openai.close()
            await made.ollama._client.aclose()
    assert await residents.close()


async def test_openai_chats_completes_embeds_and_lists() -> None:
    async with clients() as here:
        chat: Any = await here.openai.chat.completions.create(
            model=NAME, messages=[USER], temperature=0, max_tokens=8, logprobs=True, top_logprobs=2, n=2
        )
        stream: Any = await here.openai.chat.completions.create(
            model=NAME, messages=[USER], temperature=0, max_tokens=8, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        done: Any = await here.openai.completions.create(model=NAME, prompt=["ab", "cd"], max_tokens=3, temperature=0)
        vectors = await here.openai.embeddings.create(model=NAME, input=["ab", "cd"])
        tokens = await here.openai.embeddings.create(model=NAME, input=[[97, 98], [99, 100]])
        models = [model.id async for model in here.openai.models.list()]
        one = await here.openai.models.retrieve(NAME)
    text = chat.choices[0].message.content
    assert len(text) == 8 and chat.choices[1].message.content == text
    assert [len(choice.logprobs.content[0].top_logprobs) for choice in chat.choices] == [2, 2]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert (chunks[-1].usage.completion_tokens, chunks[-2].choices[0].finish_reason) == (8, "length")
    assert [len(choice.text) for choice in done.choices] == [3, 3]
    assert [vector.embedding for vector in vectors.data] == [
        pytest.approx(vector.embedding, abs=1e-6) for vector in tokens.data
    ]
    assert (models, one.id) == ([NAME], NAME)


async def test_openai_gets_its_own_errors() -> None:
    async with clients() as here:
        with pytest.raises(openai.NotFoundError, match="not found"):
            await here.openai.chat.completions.create(model="nothing", messages=[USER])  # type: ignore[list-item]
        with pytest.raises(openai.BadRequestError, match="context length") as caught:
            await here.openai.completions.create(model=NAME, prompt="x" * 10_000)
        with pytest.raises(openai.BadRequestError, match="temprature"):
            await here.openai.completions.create(model=NAME, prompt="x", extra_body={"temprature": 1})
    assert caught.value.code == "context_length_exceeded"


async def test_ollama_chats_generates_embeds_loads_and_unloads() -> None:
    async with clients() as here:
        options = {"temperature": 0, "num_predict": 8, "stop": []}
        chat = await here.ollama.chat(NAME, [USER], options=options, logprobs=True, top_logprobs=1)
        pieces = [part async for part in await here.ollama.chat(NAME, [USER], options=options, stream=True)]
        written = await here.ollama.generate(NAME, "q", options=options)
        vectors = await here.ollama.embed(NAME, ["ab", "cd"])
        resident = (await here.ollama.ps()).models
        await here.ollama.generate(NAME, keep_alive=0)
        gone = (await here.ollama.ps()).models
        listed = (await here.ollama.list()).models
        shown = await here.ollama.show(NAME)
        with pytest.raises(ollama.ResponseError, match="'nothing' not found"):
            await here.ollama.chat("nothing", [USER])
    assert len(chat.message.content or "") == 8 and chat.logprobs is not None and len(chat.logprobs) == 8
    assert "".join(part.message.content or "" for part in pieces) == chat.message.content
    assert (written.eval_count, pieces[-1].done_reason) == (8, "length")
    assert len(vectors.embeddings) == 2
    assert ([one.model for one in resident], list(gone)) == ([NAME], [])
    assert ([one.model for one in listed], shown.details and shown.details.family) == ([NAME], "llama")


async def test_thirty_two_at_once_get_what_each_would_get_alone() -> None:
    async def ask(here: Clients, number: int) -> str:
        done: Any = await here.openai.completions.create(
            model=NAME, prompt=f"question {number}", max_tokens=20, temperature=1, seed=number
        )
        return str(done.choices[0].text)

    async with clients() as here:
        alone = [await ask(here, number) for number in range(32)]
        together = await asyncio.gather(*(ask(here, number) for number in range(32)))
        batch = max(len(step.rows) for step in here.runner.steps)
        assert not here.residents.main.engine.busy
    assert together == alone
    assert batch > 4, "they ran in one batch"


async def test_a_client_that_leaves_frees_its_blocks() -> None:
    async with clients() as here:
        stream: Any = await here.openai.completions.create(
            model=NAME, prompt="endless", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
        await until_true(lambda: not here.residents.main.engine.busy)
        await until_true(lambda: here.residents.main.engine.stats().running == 0)
        stats = here.residents.main.engine.stats()
    assert (stats.cancelled, stats.blocks_used) == (1, 0)


async def test_the_engines_thread_dies_and_nobody_notices_but_health(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with clients() as here:
        await here.openai.completions.create(model=NAME, prompt="warm", max_tokens=1)
        here.runner.failures = [None, SystemExit("the thread dies")]
        done: Any = await here.openai.completions.create(model=NAME, prompt="again", max_tokens=8, temperature=0)
        same: Any = await here.openai.completions.create(model=NAME, prompt="again", max_tokens=8, temperature=0)
        restarts = here.residents.main.engine.stats().restarts
    assert done.choices[0].text == same.choices[0].text
    assert restarts == 1
