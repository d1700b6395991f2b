"""The relay of a whole node, over TLS and a token: greets, loads, answers, takes a model, and leaves in order."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.offers import Files, chunk, chunks_of, files_of, offer_of
from tests.gpu_node.process import PATIENCE_SECONDS, client_of, running
from tests.transport.certificates import NODE_PEM, trusting_context
from transport.errors import Refused, TransportError, WrongToken
from transport.link import Access, Caller, Link, Place, connect
from wire.frames import FrameType
from wire.messages import encode_chunk
from wire.messages_session import Ack, GoodbyeReason
from wire.messages_stats import Stats
from wire.messages_work import (
    Bounds,
    Chunk,
    Done,
    FinishReason,
    Generate,
    Load,
    Loaded,
    Push,
    Sampling,
    TextPrompt,
    Tokens,
    Unload,
)

TOKEN = "a-token-that-nobody-guesses"
SMALL = {"POTLUCK_NODE_MAX_RUNNING": "4", "POTLUCK_NODE_KV_MEMORY": "64MB", "VRM_API_TOKEN": TOKEN}
TRUSTING = Access(TOKEN, trusting_context())


@asynccontextmanager
async def linked(event: dict[str, Any], access: Access = TRUSTING, key: bytes = b"") -> AsyncIterator[Link]:
    place = Place("127.0.0.1", event["relay_port"])
    link = await connect(place, access, Caller("tester", key), timeout_seconds=PATIENCE_SECONDS)
    try:
        yield link
    finally:
        await link.close()


def greedy(model: str, tokens: int) -> Generate:
    prompt = TextPrompt("the quick")
    return Generate(
        model, prompt, Sampling(temperature=0.0, repeat_penalty=1.0), Bounds(max_tokens=tokens, min_tokens=tokens)
    )


async def answer(link: Link, request: Generate) -> str:
    stream = await link.open(request)
    text = ""
    while not isinstance(message := await stream.message(), Done):
        text += message.text if isinstance(message, Tokens) else ""
    return text


async def push(link: Link, model: str, files: Files) -> None:
    stream = await link.open(offer_of(model, files), ends=False)
    held = await stream.message()
    assert isinstance(held, Ack)
    for one in chunks_of(files, held.held):
        await stream.send(FrameType.DATA, *encode_chunk(one))
        assert isinstance(await stream.message(), Ack)
    await stream.send(FrameType.DATA, ends=True)
    assert await stream.message() == Ack(sum(map(len, files.values())), tuple(map(len, files.values())))


@dataclass
class Visit:
    """A client at a running node."""

    process: subprocess.Popen[str]
    event: dict[str, Any]
    http: httpx.Client
    link: Link

    async def get(self, path: str) -> Any:
        return await asyncio.to_thread(self.http.get, path)

    async def post(self, path: str, **body: Any) -> Any:
        return (await asyncio.to_thread(self.http.post, path, json=body)).json()


async def test_a_client_does_everything_over_tls_and_finds_it_again_after_a_restart(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Two nodes one after the other for all of it: starting one takes seconds."""
    other = files_of(write_tiny_model(tmp_path / "other", max_position_embeddings=8192, eos_token_id=0))
    packed = await asyncio.to_thread(tiny_gguf.read_bytes)
    half = offer_of("half", {**other, "README.md": b"changed"})
    tls = ("--tls-certificate", str(NODE_PEM), "--name", "attic")
    with running(tiny_folder, tmp_path / "cache", *tls, **SMALL) as (process, event), client_of(event) as http:
        await refuses_strangers(event)
        async with linked(event) as link:
            visit = Visit(process, event, http, link)
            await greets_and_answers(visit)
            await takes_a_model(visit, other)
            await takes_a_packed_model_and_another_in_its_place(visit, packed, other)
            held = await begin_and_leave(link, half, chunk(len(other), 0, b"cha"))
            assert held.held[-1] == 0
            await tells_of_itself(visit)
            await leaves_in_order(visit)
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "")
    assert TOKEN not in err and "Traceback" not in err
    with running("anna/other", tmp_path / "cache", **SMALL) as (process, event):
        assert event["model"] == "anna/other"
        async with linked(event, Access(TOKEN)) as link:
            assert isinstance(await link.ask(Unload("anna/other")), Ack)
            assert await answer(link, greedy("anna/other", 4))
            again = await begin_and_leave(link, half)
            assert again.held == (*held.held[:-1], 3), "what came before is still there"
        process.kill()


async def refuses_strangers(event: dict[str, Any]) -> None:
    for wrong in (Access("another token", trusting_context()), Access(None, trusting_context())):
        with pytest.raises(WrongToken):
            await linked(event, wrong).__aenter__()
    with pytest.raises(TransportError):  # no TLS where TLS is spoken
        await linked(event, Access(TOKEN)).__aenter__()


async def greets_and_answers(visit: Visit) -> None:
    link, name = visit.link, str(visit.event["model"])
    assert (link.welcome.name, link.welcome.resumed) == ("attic", False)
    assert (link.welcome.idle_seconds, link.welcome.grace_seconds) == (300, 30)
    loaded = await link.ask(Load(name))
    assert isinstance(loaded, Loaded) and loaded.device_bytes > 0
    asked = {"model": name, "prompt": "the quick", "max_tokens": 8, "min_tokens": 8, "temperature": 0}
    completion = await visit.post("/v1/completions", **asked)
    assert await answer(link, greedy(name, 8)) == completion["choices"][0]["text"]


async def takes_a_model(visit: Visit, files: Files) -> None:
    link, name = visit.link, str(visit.event["model"])
    await push(link, "Anna/Other", files)
    tags = (await visit.get("/api/tags")).json()["models"]
    assert "anna/other" in {model["name"].removesuffix(":latest") for model in tags}
    assert isinstance(await link.ask(Load("anna/other")), Loaded)
    told = await link.ask(Stats())
    assert isinstance(told, Stats)
    assert {model.name for model in told.models} >= {name, "anna/other"}
    assert {resident.model for resident in told.residents} == {name, "anna/other"}
    body = {"model": "anna/other", "prompt": "the quick", "stream": False, "options": {"num_predict": 4}}
    assert (await visit.post("/api/generate", **body))["eval_count"] == 4


async def takes_a_packed_model_and_another_in_its_place(visit: Visit, packed: bytes, files: Files) -> None:
    link = visit.link
    await push(link, "packed", {"Tiny.F32.gguf": packed})
    assert "packed" in {model["id"] for model in (await visit.get("/v1/models")).json()["data"]}
    assert await answer(link, greedy("packed", 4))
    await push(link, "packed", files)
    anew = await link.ask(Load("packed"))
    assert isinstance(anew, Loaded) and anew.context_tokens == 8192, "it was loaded, and is another one now"
    assert isinstance(await link.ask(Unload("packed")), Ack)


async def begin_and_leave(link: Link, offer: Push, part: Chunk | None = None) -> Ack:
    stream = await link.open(offer, ends=False)
    held = await stream.message()
    assert isinstance(held, Ack) and sum(held.held) > 0, "what other models hold need not come"
    if part is not None:
        await stream.send(FrameType.DATA, *encode_chunk(part))
        assert isinstance(await stream.message(), Ack)
    stream.cancel()
    return held


async def tells_of_itself(visit: Visit) -> None:
    sessions = (await visit.get("/api/sessions")).json()["sessions"]
    (own,) = (session for session in sessions if session["name"] == "tester")
    assert own["models"] == sorted(["anna/other", str(visit.event["model"])])
    metrics = (await visit.get("/metrics")).text
    assert 'potluck_node_relay_faults_total{code="wrong_proof"}' in metrics
    assert re.search(r'potluck_node_relay_requests_total\{type="push"\} 4\.0', metrics)


async def leaves_in_order(visit: Visit) -> None:
    link, process = visit.link, visit.process
    endless = await link.open(greedy("anna/other", 100_000))
    short = await link.open(greedy("anna/other", 40))
    assert isinstance(await endless.message(), Tokens)
    process.send_signal(signal.SIGTERM)
    while not isinstance(last := await short.message(), Done):
        assert isinstance(last, Tokens)
    assert (last.output_tokens, last.reason) == (40, FinishReason.LENGTH), "it had a while to end"
    while link.goodbye is None:
        assert isinstance(await endless.message(), Tokens)
    assert link.goodbye.reason is GoodbyeReason.STOPPING
    process.send_signal(signal.SIGTERM)  # nobody is patient any more
    with pytest.raises(Refused, match="STOPPING"):
        while True:
            assert isinstance(await endless.message(), Tokens)
