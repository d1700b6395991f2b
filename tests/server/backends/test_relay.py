"""The backend for relay nodes, over real sockets to a node that plays by script."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from server.backends.base import Call, Patience
from server.backends.relay import SPARE_TOKENS
from server.errors import (
    NodeBroken,
    NodeBusy,
    NodeError,
    NodeIncapable,
    NodeRefused,
    NodeStalled,
    NodeUnreachable,
)
from server.exchange import Begun, Embedding, NodeDone, NodeEvent, Token, Usage
from server.nodes import NodeId, NodeSpec
from tests.fakes.relay_node import Piece, Refusal, fake_relay_node
from tests.server.backends.relay_asking import CALL, PATIENCE, REPORT, read, relay_backend, spec_of, text_of
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode, Hello
from wire.messages_stats import Stats
from wire.messages_work import Embed, Generate, Given, Load, Logprob, Phase, Progress, Sampling, TokenLogprob, Unload


async def test_a_probe_tells_what_is_there_and_loads_nothing():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        report = await backend.probe(spec_of(node), 5)
        assert (report.version, report.slots, report.gpu_node) == ("0.1.0", 32, True)
        assert report.node_id == node.node_id.hex()
        assert report.continues_assistant and report.renders
        assert [(copy.name, copy.digest, copy.size_bytes) for copy in report.models] == [
            ("tiny", "aa11", 1000), ("other:1b", "bb22", 2000),
        ]  # fmt: skip
        assert [(one.name, one.context_length) for one in report.resident] == [("tiny", 256)]
        assert [type(message) for message in node.heard] == [Hello, Stats]


async def test_an_answer_is_told_with_its_tokens_and_counts():
    async with fake_relay_node() as node, relay_backend() as backend:
        events, error = await read(backend, spec_of(node))
        assert error is None
        assert events[:2] == [Token("Par", tokens=1, ids=(5,)), Token("is", tokens=2, ids=(6, 7))]
        *tokens, done = events
        assert text_of(tokens) == "Paris is nice!"
        assert isinstance(done, NodeDone)
        assert (done.reason, done.model, done.usage) == ("stop", "tiny", Usage(3, 7))
        assert (done.durations.prompt, done.durations.generation) == (1000, 2000) and done.durations.total > 0
        assert done.context == (), "of a chat there is none"


async def test_all_that_is_asked_of_a_node_goes_over_one_connection():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        spec = spec_of(node)
        await asyncio.gather(
            *(read(backend, spec) for _ in range(10)), backend.probe(spec, 5), backend.render(spec, CALL, 5)
        )
        await backend.operations.ask(spec, "/api/gpu", 5)
        assert node.accepted == 1


async def test_what_the_models_maker_wants_holds_where_the_request_says_nothing():
    async with fake_relay_node(report=REPORT) as node, relay_backend() as backend:
        await read(backend, spec_of(node), replace(CALL, options={"top_k": 7}))
        await read(backend, spec_of(node), replace(CALL, options={"temperature": 1.5, "stop": ["x"]}))
        first, second = node.asked(Generate)
        assert (first.sampling.temperature, first.sampling.top_k, first.stop) == (0.25, 7, ("<end>",))
        assert (second.sampling.temperature, second.stop) == (1.5, ("x",))
        assert len(node.asked(Stats)) == 1, "asked once"


async def test_what_a_node_tells_wrongly_of_its_model_is_no_fault_of_the_request():
    told = (("temperature", "hot"), ("top_k", 7), ("stop", (1,)))
    report = replace(REPORT, models=(replace(REPORT.models[0], parameters=told),))  # type: ignore[arg-type]
    async with fake_relay_node(report=report) as node, relay_backend() as backend:
        assert (await read(backend, spec_of(node)))[1] is None
        sampling = node.asked(Generate)[0].sampling
        assert (sampling.top_k, sampling.temperature) == (7, Sampling().temperature)


async def test_a_node_that_tells_more_than_was_asked_for_is_cut_short():
    endless = [Piece("x", (5,))] * 1000
    async with fake_relay_node(answer=lambda _: endless) as node, relay_backend() as backend:
        node.script.gate = asyncio.Semaphore(3 + SPARE_TOKENS + 1)
        events, error = await read(backend, spec_of(node), replace(CALL, options={"num_predict": 3}))
        assert type(error) is NodeBroken and "more than the 3 tokens" in error.message
        assert len(events) <= 3 + SPARE_TOKENS
        await node.until(lambda: node.cancelled == [FrameType.GENERATE])


async def test_of_more_dimensions_than_a_model_has_all_are_told():
    refusal = Refusal(FrameType.EMBED, Error(ErrorCode.BAD_REQUEST, "tiny has 4", None, (("field", "dimensions"),)))
    async with fake_relay_node(refusals=[refusal]) as node, relay_backend() as backend:
        asked = Call("embed", "tiny", fields={"input": ["a"], "dimensions": 99})
        events, error = await read(backend, spec_of(node), asked)
        assert error is None and isinstance(events[0], Embedding)
        assert [one.dimensions for one in node.asked(Embed)] == [99, 0]


@pytest.mark.parametrize("digest", ["sha256:aa11", "sha256:cc33"])
async def test_a_node_that_starts_anew_goes_on_with_the_same_weights_only(digest: str):
    anew = replace(REPORT, models=(replace(REPORT.models[0], digest=digest),))
    async with fake_relay_node(report=REPORT, gate=asyncio.Semaphore(2)) as node, relay_backend() as backend:
        events: list[NodeEvent] = []
        error: NodeError | None = None
        try:
            async with aclosing(backend.stream(spec_of(node), CALL, PATIENCE)) as batches:
                async for batch in batches:
                    events += batch
                    if len(events) == 2:
                        node.script.report, node.incarnation, node.script.gate = anew, 8, None
                        node.forget()
                        node.cut()
        except NodeError as problem:
            error = problem
        if digest == REPORT.models[0].digest:
            assert error is None and text_of(events) == "Paris is nice!"
        else:
            assert type(error) is NodeBroken and "started anew" in error.message
            assert text_of(events) == "Paris"


async def test_an_answer_that_was_begun_elsewhere_is_asked_for_by_its_tokens():
    async with fake_relay_node() as node, relay_backend() as backend:
        events, error = await read(backend, spec_of(node), replace(CALL, begun=Begun((5, 6, 7), 4)))
        assert error is None and text_of(events) == "s is nice!"
        assert node.asked(Generate)[0].given == (Given((5, 6, 7), 4),)


async def test_logprobs_are_told_as_ollama_tells_them():
    entry = TokenLogprob(Logprob(5, -0.5, "Par"), (Logprob(5, -0.5, "Par"), Logprob(6, float("-inf"), "\ufffd")))
    pieces = [Piece("Par", (5,), 0, (entry,)), Piece("is", (6,), 0, (TokenLogprob(Logprob(6, -1.0, "is")),))]
    async with fake_relay_node(answer=lambda _: pieces) as node, relay_backend() as backend:
        events, _ = await read(backend, spec_of(node), replace(CALL, fields={"logprobs": True, "top_logprobs": 2}))
        assert node.asked(Generate)[0].sampling.logprobs == 2
        told = [event.logprobs for event in events if isinstance(event, Token)]
        par = {"token": "Par", "logprob": -0.5, "bytes": [80, 97, 114]}
        broken = {"token": "\ufffd", "logprob": -9999.0, "bytes": None}
        assert told[0] == ({**par, "top_logprobs": [par, broken]},)
        assert told[1] == ({"token": "is", "logprob": -1.0, "bytes": [105, 115]},)


@pytest.mark.parametrize(
    "call",
    [
        Call("generate", "tiny", prompt="x" * (1 << 20)),
        replace(CALL, messages=[{"role": "", "content": "hi"}]),
        replace(CALL, messages=[{"role": "user", "content": "\ud800"}]),
        replace(CALL, options={"stop": [str(number) for number in range(65)]}),
        Call("embed", "tiny", fields={"input": ["x" * (1 << 20)]}),
        Call("generate", "m" * 600),
    ],
)
async def test_what_no_message_carries_may_be_for_another_node(call: Call):
    async with fake_relay_node() as node, relay_backend() as backend:
        events, error = await read(backend, spec_of(node), call)
        assert events == [] and type(error) is NodeIncapable
        assert (await read(backend, spec_of(node)))[1] is None and node.accepted == 1


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "strikes"),
    [
        (Error(ErrorCode.BUSY, "full", 1500), NodeBusy, False),
        (Error(ErrorCode.STOPPING, "bye"), NodeBusy, False),
        (Error(ErrorCode.NO_ROOM, "no room"), NodeBusy, False),
        (Error(ErrorCode.BAD_REQUEST, "wrong"), NodeRefused, False),
        (Error(ErrorCode.CONTEXT_EXCEEDED, "too long"), NodeRefused, False),
        (Error(ErrorCode.MODEL_NOT_FOUND, "who?"), NodeRefused, False),
        (Error(ErrorCode.UNSUPPORTED, "cannot"), NodeIncapable, False),
        (Error(ErrorCode.MODEL_FAILED, "no files"), NodeBroken, True),
        (Error(ErrorCode.GENERATION_FAILED, "nan"), NodeBroken, True),
        (Error(ErrorCode.INTERNAL, "a defect"), NodeBroken, True),
    ],
)
async def test_a_refusal_is_judged_as_over_http(error: Error, kind: type[NodeError], strikes: bool):
    async with fake_relay_node(refusals=[Refusal(FrameType.GENERATE, error)]) as node, relay_backend() as backend:
        events, raised = await read(backend, spec_of(node))
        assert events == [] and type(raised) is kind and raised.strike is strikes
        assert error.text in raised.message
        if isinstance(raised, NodeBusy):
            assert raised.retry_after_seconds == (1.5 if error.retry_after_ms else None)
        if isinstance(raised, NodeRefused):
            statuses = {ErrorCode.MODEL_NOT_FOUND: 404, ErrorCode.UNSUPPORTED: 501}
            assert raised.status == statuses.get(error.code, 400)


async def test_a_form_that_this_node_cannot_follow_may_be_one_for_another():
    error = Error(ErrorCode.BAD_REQUEST, "the schema cannot be followed")
    async with fake_relay_node(refusals=[Refusal(FrameType.GENERATE, error)]) as node, relay_backend() as backend:
        _, raised = await read(backend, spec_of(node), replace(CALL, fields={"format": {"type": "object"}}))
        assert type(raised) is NodeIncapable and raised.status == 400


async def test_nobody_listening_is_told_from_silence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        spec = NodeSpec(NodeId("r"), "r", "relay", "127.0.0.1", taken.getsockname()[1])
        async with relay_backend() as backend:
            with pytest.raises(NodeUnreachable) as caught:
                await backend.probe(spec, 5)
            assert isinstance(caught.value.__cause__, ConnectionRefusedError), "a restart, as the health loop reads it"
            assert type((await read(backend, spec))[1]) is NodeUnreachable


async def test_a_token_that_the_node_does_not_know_is_the_owners_mistake():
    async with fake_relay_node(token="right") as node:
        async with relay_backend(VRM_API_TOKEN="wrong", KEY="right") as backend:
            with pytest.raises(NodeBroken, match="refuses the gateway"):
                await backend.probe(spec_of(node), 5)
            assert (await backend.probe(spec_of(node, api_key_env="KEY"), 5)).version == "0.1.0"
            with pytest.raises(NodeUnreachable, match="NOT_SET"):
                await backend.probe(spec_of(node, api_key_env="NOT_SET"), 5)
        async with relay_backend(VRM_API_TOKEN="right") as backend:
            assert (await read(backend, spec_of(node)))[1] is None


@pytest.mark.parametrize("frames", range(6))
async def test_a_cut_within_an_answer_is_not_seen(frames: int):
    async with fake_relay_node() as node, relay_backend() as backend:
        spec = spec_of(node)
        await backend.probe(spec, 5)
        whole, _ = await read(backend, spec)
        node.cut_after(frames)
        events, error = await read(backend, spec)
        assert error is None and events[:-1] == whole[:-1]
        assert isinstance(events[-1], NodeDone) and events[-1].usage == Usage(3, 7)
        assert node.accepted == 2


async def test_a_node_that_is_gone_in_the_middle_is_left_at_once():
    """Nobody listens there any more: its session is lost, and patience would only cost the client time."""
    async with fake_relay_node(gate=asyncio.Semaphore(2)) as node, relay_backend() as backend:
        told: list[NodeEvent] = []
        with pytest.raises(NodeUnreachable) as caught:
            async with aclosing(backend.stream(spec_of(node), CALL, Patience(5, 600, 600, 600))) as batches:
                async for batch in batches:
                    told += batch
                    if len(told) == 2:
                        await node.stop()
        assert text_of(told) == "Paris" and caught.value.strike


async def test_a_client_that_leaves_cancels_the_work():
    gate = asyncio.Semaphore(2)
    async with fake_relay_node(gate=gate) as node, relay_backend() as backend:
        stream = backend.stream(spec_of(node), CALL, PATIENCE)
        async with aclosing(stream) as batches:
            async for batch in batches:
                assert isinstance(batch[0], Token)
                break
        await node.until(lambda: FrameType.GENERATE in node.cancelled)
        assert node.accepted == 1
        gate.release()
        assert (await backend.probe(spec_of(node), 5)).version == "0.1.0", "the connection lives on"


def _silent_after(count: int) -> Any:
    return fake_relay_node(gate=asyncio.Semaphore(count))


@pytest.mark.parametrize(("told", "phase"), [(0, "first_token"), (2, "between_tokens")])
async def test_silence_ends_the_attempt_and_the_work(told: int, phase: str):
    patience = Patience(60, 0.05 if phase == "first_token" else 60, 0.25, 60)
    async with _silent_after(told) as node, relay_backend() as backend:
        await backend.probe(spec_of(node), 5)
        events, error = await read(backend, spec_of(node), patience=patience)
        assert isinstance(error, NodeStalled) and error.phase == phase and len(events) == told
        await node.until(lambda: FrameType.GENERATE in node.cancelled)


async def test_a_request_has_an_end_however_lively_it_is():
    async with _silent_after(1) as node, relay_backend() as backend:
        await backend.probe(spec_of(node), 5)
        _, error = await read(backend, spec_of(node), patience=Patience(5, 5, 5, 0.05))
        assert isinstance(error, NodeStalled) and error.phase == "total"


async def test_a_node_that_takes_connections_and_says_nothing_is_stalled():
    async with fake_relay_node() as node, relay_backend() as backend:
        node.mute = True
        with pytest.raises(NodeStalled) as caught:
            await backend.probe(spec_of(node), 0.05)
        assert caught.value.phase == "probe"


async def test_an_answer_with_a_token_missing_is_broken():
    async with fake_relay_node(lie="gap") as node, relay_backend() as backend:
        _, error = await read(backend, spec_of(node))
        assert type(error) is NodeBroken


# -- what needs no generating ------------------------------------------------------------------------------------------


async def test_texts_get_their_vectors():
    async with fake_relay_node() as node, relay_backend() as backend:
        fields = {"input": ["a", "bb", "ccc"], "truncate": False, "dimensions": 2, "keep_alive": "5m"}
        events, error = await read(backend, spec_of(node), Call("embed", "tiny", fields=fields))
        assert error is None
        assert events[0] == Embedding([[1.0, 1.0, 2.0], [2.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
        assert isinstance(events[1], NodeDone) and events[1].usage == Usage(9, 0)
        assert node.asked(Embed) == [
            Embed("tiny", ("a", "bb", "ccc"), truncate=False, dimensions=2, keep_alive_seconds=300.0)
        ]
        events, _ = await read(backend, spec_of(node), Call("embed", "tiny", fields={"input": []}))
        assert events[0] == Embedding([]) and len(node.asked(Embed)) == 1


async def test_an_empty_prompt_loads_and_lets_go():
    async with fake_relay_node(progress=(Progress(Phase.READING, 1, 2),)) as node, relay_backend() as backend:
        for fields, reason in (({"keep_alive": -1}, "load"), ({}, "load"), ({"keep_alive": "0s"}, "unload")):
            (done,), error = await read(backend, spec_of(node), Call("generate", "tiny", fields=fields))
            assert error is None and isinstance(done, NodeDone) and (done.reason, done.model) == (reason, "tiny")
        first, second = node.asked(Load)
        assert dict(first.options) == {"keep_alive_seconds": float("inf"), "hold": False}
        assert dict(second.options) == {"hold": False}
        assert node.asked(Unload) == [Unload("tiny")]


async def test_a_prompt_is_rendered_and_nothing_generated():
    pieces = [Piece("<user>Paris?", ()), Piece("<assistant>", ())]
    async with fake_relay_node(answer=lambda _: pieces) as node, relay_backend() as backend:
        assert await backend.render(spec_of(node), CALL, 5) == "<user>Paris?<assistant>"
        assert node.asked(Generate)[0].render_only
        with pytest.raises(NodeRefused) as caught:
            await backend.render(spec_of(node), replace(CALL, model="nobody"), 5)
        assert caught.value.status == 404


async def test_a_rendering_that_does_not_come_is_a_stall():
    async with _silent_after(0) as node, relay_backend() as backend:
        await backend.probe(spec_of(node), 5)
        with pytest.raises(NodeStalled) as caught:
            await backend.render(spec_of(node), CALL, 0.05)
        assert caught.value.phase == "render"


async def test_a_model_is_described():
    described = (("template", "{{ messages }}"), ("licence", "MIT"), ("info.tokenizer.ggml.add_bos_token", True))
    report = replace(REPORT, values=(*REPORT.values, *described, ("info.odd", (1, 2))))
    async with fake_relay_node(report=report) as node, relay_backend() as backend:
        shown = await backend.show(spec_of(node), "Tiny:latest", 5)
        assert node.asked(Stats) == [Stats((("model", "Tiny:latest"),))]
        assert shown["details"]["quantization_level"] == "Q4_0" and shown["capabilities"] == ["completion"]
        assert (shown["template"], shown["license"]) == ("{{ messages }}", "MIT")
        assert shown["model_info"] == {
            "general.architecture": "llama", "llama.context_length": 256, "tokenizer.ggml.add_bos_token": True,
        }  # fmt: skip
        assert shown["parameters"].split() == ["temperature", "0.25", "stop", '"<end>"']
        with pytest.raises(NodeRefused, match="not found"):
            await backend.show(spec_of(node), "nobody", 5)
        node.script.report = REPORT
        plain = await backend.show(spec_of(node), "tiny", 5)
        assert plain["template"] == "" and "license" not in plain
