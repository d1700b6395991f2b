"""A node whose model lies over devices, from outside: answers go on over HTTP while stages die, freeze, come and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.process import PATIENCE_SECONDS, running

# Six layers of a megabyte: two of these budgets hold the model, one does not. The stated slowness makes answers last.
# Four of them: one that was lost comes back only after a pause.
DEVICES = ",".join(["cpu:5MiB@0.2"] * 4)
LARGER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
SMALL = {"POTLUCK_NODE_MAX_RUNNING": "4", "POTLUCK_NODE_KV_BLOCKS": "64", "POTLUCK_NODE_STEP_TOKENS": "64"}
PROMPTS = ("the quick", "brown fox", "jumps over")
TOKENS = 120


@dataclass
class Streaming:
    """An answer as it comes."""

    text: str = ""
    records: int = 0
    tokens: int = 0  # known at the end

    def take(self, record: dict[str, Any]) -> None:
        assert "error" not in record, record
        self.text += "".join(choice["text"] for choice in record["choices"])
        self.records += 1
        self.tokens = (record.get("usage") or {}).get("completion_tokens", 0)


@dataclass
class Scene:
    http: httpx.AsyncClient
    process: subprocess.Popen[str]
    model: str

    async def stream(self, prompt: str, into: Streaming) -> Streaming:
        greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
        body = {"model": self.model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
        async with self.http.stream("POST", "/v1/completions", json=body | greedy) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    into.take(json.loads(line.removeprefix("data: ")))
        return into

    async def answers(self, meanwhile: Callable[[], Awaitable[object]] | None = None) -> list[tuple[str, int]]:
        """Of all prompts at once, text and count of tokens; `meanwhile` happens when a part of each has come."""
        streams = [Streaming() for _ in PROMPTS]
        asking = asyncio.gather(*(self.stream(prompt, into) for prompt, into in zip(PROMPTS, streams, strict=True)))
        if meanwhile is not None:
            await until(lambda: asking.done() or all(one.records > TOKENS // 10 for one in streams))
            assert not any(one.tokens for one in streams), "too quick to be disturbed"
            await meanwhile()
        return [(one.text, one.tokens) for one in await asking]

    async def pipeline(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self.http.get("/api/pipeline/status")).json()
        return told

    async def stages(self) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = (await self.pipeline())["models"][self.model]["stages"]
        return stages

    async def send(self, number: signal.Signals, stage: int) -> str:
        """To the process of a stage; the name of its device."""
        told = (await self.stages())[stage]
        os.kill(told["pid"], number)
        return str(told["device"])

    async def happened(self, device: str, what: str) -> bool:
        return any((one["device"], one["what"]) == (device, what) for one in (await self.pipeline())["events"])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.005)


async def until_told(ask: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await ask():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    model = write_tiny_model(folder / "tiny", **LARGER)
    with running(model, folder / "cache", "--devices", DEVICES, **SMALL) as (process, event):
        assert process.stderr is not None
        reading = asyncio.create_task(asyncio.to_thread(process.stderr.read))
        address = f"http://127.0.0.1:{event['port']}"
        try:
            async with httpx.AsyncClient(base_url=address, timeout=2 * PATIENCE_SECONDS) as http:
                yield Scene(http, process, str(event["model"]))
        finally:
            process.terminate()
            print(await reading)  # for whoever has to find out what failed
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0


@pytest.mark.timeout(900)
async def test_answers_go_on_while_stages_die_freeze_come_and_go(tmp_path: Path) -> None:
    """One node for all of it: starting one takes seconds."""
    async with scene(tmp_path) as here:
        calm = await here.answers()
        assert [count for _, count in calm] == [TOKENS] * len(PROMPTS)
        await lies_on_two_devices(here)
        await a_stage_dies(here, calm)
        await a_stage_freezes(here, calm)
        await a_device_joins_and_another_leaves(here, calm)


async def lies_on_two_devices(here: Scene) -> None:
    first, last = await here.stages()
    assert (first["first_layer"], first["behind_layer"], last["behind_layer"]) == (0, last["first_layer"], 6)
    assert first["pid"] != last["pid"] and here.process.pid not in (first["pid"], last["pid"])


async def a_stage_dies(here: Scene, calm: list[tuple[str, int]]) -> None:
    lost: list[str] = []

    async def die() -> None:
        lost.append(await here.send(signal.SIGKILL, 1))

    assert await here.answers(die) == calm
    await until_told(lambda: here.happened(lost[0], "lost"))


async def a_stage_freezes(here: Scene, calm: list[tuple[str, int]]) -> None:
    before = {stage["pid"] for stage in await here.stages()}

    async def freeze() -> None:
        await here.send(signal.SIGSTOP, 0)

    assert await here.answers(freeze) == calm
    assert len(before & {stage["pid"] for stage in await here.stages()}) <= 1


async def a_device_joins_and_another_leaves(here: Scene, calm: list[tuple[str, int]]) -> None:
    leaving = (await here.stages())[0]["device"]
    added: list[str] = []

    async def change() -> None:
        reply = await here.http.post("/api/devices", json={"device": "cpu:6MiB@0.2"})
        assert reply.is_success, reply.text
        added.append(reply.json()["device"])
        reply = await here.http.delete(f"/api/devices/{leaving}")
        assert reply.is_success, reply.text

    assert await here.answers(change) == calm
    assert added and added[0] != leaving
    await until_told(lambda: here.happened(leaving, "left"))
    assert leaving not in [stage["device"] for stage in await here.stages()]
    assert await here.answers() == calm
