"""The relay of a whole node, over TLS and a token: greets, loads, answers, takes a model, and leaves in order."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.offers import Files, chunks_of, files_of, offer_of
from tests.gpu_node.process import PATIENCE_SECONDS, client_of, running
from tests.transport.certificates import NODE_PEM, trusting_context
from transport.errors import Refused, TransportError, WrongToken
from transport.link import Access, Caller, Link, Place, connect
from wire.frames import FrameType
from wire.messages import encode_chunk
from wire.messages_session import Ack, GoodbyeReason
from wire.messages_stats import Stats
from wire.messages_work import Bounds, Done, FinishReason, Generate, Load, Loaded, Sampling, TextPrompt, Tokens, Unload

TOKEN = "a-token-that-nobody-guesses"
SMALL = {"POTLUCK_NODE_MAX_RUNNING": "4", "POTLUCK_NODE_KV_MEMORY": "4MB", "VRM_API_TOKEN": TOKEN}
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


async def test_a_client_does_everything_over_tls_and_the_node_leaves_in_order(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """One node for all of it: starting one takes seconds."""
    other = files_of(write_tiny_model(tmp_path / "other", max_position_embeddings=2048, eos_token_id=0))
    tls = ("--tls-certificate", str(NODE_PEM), "--name", "attic")
    with running(tiny_folder, tmp_path / "cache", *tls, **SMALL) as (process, event), client_of(event) as http:
        for wrong in (Access("another token", trusting_context()), Access(None, trusting_context())):
            with pytest.raises(WrongToken):
                await linked(event, wrong).__aenter__()
        with pytest.raises(TransportError):  # no TLS where TLS is spoken
            await linked(event, Access(TOKEN)).__aenter__()
        async with linked(event) as link:
            assert (link.welcome.name, link.welcome.resumed) == ("attic", False)
            assert (link.welcome.idle_seconds, link.welcome.grace_seconds) == (300, 30)
            name = str(event["model"])
            loaded = await link.ask(Load(name))
            assert isinstance(loaded, Loaded) and loaded.device_bytes > 0
            body = {"model": name, "prompt": "the quick", "max_tokens": 8, "min_tokens": 8, "temperature": 0}
            completion = (await asyncio.to_thread(http.post, "/v1/completions", json=body)).json()
            assert await answer(link, greedy(name, 8)) == completion["choices"][0]["text"]

            await push(link, "Anna/Other", other)
            tags = (await asyncio.to_thread(http.get, "/api/tags")).json()["models"]
            assert "anna/other" in {model["name"].removesuffix(":latest") for model in tags}
            assert isinstance(await link.ask(Load("anna/other")), Loaded)
            told = await link.ask(Stats())
            assert isinstance(told, Stats)
            assert {model.name for model in told.models} >= {name, "anna/other"}
            assert {resident.model for resident in told.residents} == {name, "anna/other"}
            body = {"model": "anna/other", "prompt": "the quick", "stream": False, "options": {"num_predict": 4}}
            assert (await asyncio.to_thread(http.post, "/api/generate", json=body)).json()["eval_count"] == 4
            sessions = (await asyncio.to_thread(http.get, "/api/sessions")).json()["sessions"]
            (own,) = (session for session in sessions if session["name"] == "tester")
            assert own["models"] == sorted(["anna/other", name])
            metrics = (await asyncio.to_thread(http.get, "/metrics")).text
            assert 'potluck_node_relay_faults_total{code="wrong_proof"}' in metrics
            assert re.search(r'potluck_node_relay_requests_total\{type="push"\} 1\.0', metrics)

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
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "")
    assert TOKEN not in err and "Traceback" not in err


async def test_what_was_pushed_is_there_after_a_restart_and_can_be_the_nodes_own(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    files = files_of(tiny_folder)
    half = offer_of("half", {**files, "README.md": b"changed"})
    with running(tiny_folder, tmp_path / "cache", **SMALL) as (process, event), client_of(event) as http:
        async with linked(event, Access(TOKEN)) as link:
            await push(link, "mine", files)
            await push(link, "packed", {"Tiny.F32.gguf": tiny_gguf.read_bytes()})
            tags = (await asyncio.to_thread(http.get, "/v1/models")).json()["data"]
            assert {"mine", "packed"} <= {model["id"] for model in tags}
            assert await answer(link, greedy("packed", 4))
            await push(link, "packed", files_of(write_tiny_model(tmp_path / "anew", max_position_embeddings=96)))
            anew = await link.ask(Load("packed"))
            assert isinstance(anew, Loaded) and anew.context_tokens == 96, "it was loaded, and is another one now"
            stream = await link.open(half, ends=False)
            held = await stream.message()
            assert isinstance(held, Ack)
            stream.cancel()
        process.kill()  # no time for anything
    with running("mine", tmp_path / "cache", **SMALL) as (process, event):
        assert event["model"] == "mine"
        async with linked(event, Access(TOKEN)) as link:
            assert isinstance(await link.ask(Unload("mine")), Ack)
            assert await answer(link, greedy("mine", 4))
            stream = await link.open(half, ends=False)
            assert await stream.message() == held
            stream.cancel()
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in err
