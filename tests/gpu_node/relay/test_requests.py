"""How a request ends when its handler does not do as it should."""

from __future__ import annotations

import pytest

from gpu_node.relay.call import RelayCall
from tests.gpu_node.relay.relayed import answer, failure, generate, scripted
from transport.errors import Refused
from wire.frames import FrameType
from wire.messages_session import ErrorCode
from wire.messages_work import Embed, Push, PushFile, Unload

JOB = b"one answer"


async def test_a_fault_of_ours_is_one_streams_and_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(call: RelayCall) -> None:
        call.stream.release(call.request)
        raise ZeroDivisionError("ours")

    async def forgets(call: RelayCall) -> None:
        call.stream.release(call.request)

    async with scripted(more={FrameType.UNLOAD: breaks, FrameType.EMBED: forgets}) as (here, _):
        link = await here.connect()
        for message in (Unload("x"), Embed("x", ("y",))):
            error = await failure(link, message)
            assert isinstance(error, Refused) and error.code is ErrorCode.INTERNAL
            assert "ours" not in error.text
        assert "ZeroDivisionError" in caplog.text and "left without an end" in caplog.text
        assert (await answer(link, generate())).done is not None
        assert here.server.figures.failures == {"INTERNAL": 2}


async def test_what_nobody_answers_is_unsupported() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        error = await failure(link, Push("model", (PushFile("a.gguf", 1, bytes(32)),)))
        assert isinstance(error, Refused) and error.code is ErrorCode.UNSUPPORTED
