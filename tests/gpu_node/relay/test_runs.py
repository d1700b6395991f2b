"""RUN over a socket: a real small model on ids and embeddings from here and from buffers; refusals of a played one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.engine import Engine
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.sequence import InferenceRequest
from gpu_node.host import ModelHost, Stay
from gpu_node.load_wish import LoadWish
from gpu_node.model_source import ModelSource
from gpu_node.relay.models import Models
from gpu_node.relay.runs import Runs
from gpu_node.residents import Residents
from gpu_node.vram import Account
from tests.gpu_node.relay.memory_desk import Desk, T, desk
from tests.gpu_node.serving import DESCRIPTION, Files, Fleet, Model, until_true
from transport.errors import Refused
from wire.messages_memory import Alloc, Allocated, FromBuffer, InlineIds, Output, Read, Run
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Progress
from wire.tensors import DType, TensorFlags, TensorHeader

NAME = "tiny"
IDS = (3, 1, 4, 1, 5, 9, 2, 6)
TINY = LoadOptions(device="cpu", kernels="torch", dtype="float32", cache=CacheOptions(block_count=24))
TYPES = {DType.FLOAT32: torch.float32, DType.FLOAT64: torch.float64, DType.BFLOAT16: torch.bfloat16}


class RealFleet(Fleet):
    """One model that really computes."""

    folder = Path()

    def build(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        files = Files(DESCRIPTION, lambda wish: load_runner(self.folder, TINY))  # type: ignore[arg-type,return-value]
        return ModelHost((NAME,), files, lambda load, wish: Engine(load), wish, Stay())


@asynccontextmanager
async def running(fleet: Fleet, loaded: bool = True) -> AsyncIterator[Desk]:
    residents = fleet.residents()
    try:
        if loaded:
            await residents.start()
        async with desk(residents, handlers={T.RUN: Runs(Models(residents)).handle}) as one:
            one.residents = residents  # type: ignore[attr-defined]
            yield one
    finally:
        assert await residents.close()


@pytest.fixture
async def real(tiny_folder: Path) -> AsyncIterator[Desk]:
    fleet = RealFleet((Model(NAME),))
    fleet.folder = tiny_folder
    async with running(fleet) as one:
        yield one


@pytest.fixture(scope="module")
def table(tiny_folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return model.get_input_embeddings().weight.detach()


async def run(one: Desk, inputs: Any, **more: Any) -> torch.Tensor:
    header, found = await one.read(Run(NAME, inputs, **more))
    assert (header.dtype, header.size, header.flags) == (DType.FLOAT32, len(found), TensorFlags.LAST)
    return torch.from_numpy(np.frombuffer(found, "<f4").reshape(header.shape).copy())


async def put(one: Desk, handle: int, dtype: DType, tensor: torch.Tensor) -> FromBuffer:
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    await one.ask(Alloc(handle, dtype, tuple(tensor.shape)))
    stream = await one.write(TensorHeader(dtype, tuple(tensor.shape), len(data), batch=handle), data)
    assert await stream.message() == Ack(len(data))
    return FromBuffer(handle)


async def refusal(one: Desk, message: Run) -> Refused:
    with pytest.raises(Refused) as caught:
        await one.ask(message)
    return caught.value


def same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-4) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.std()))


async def test_ids_from_here_and_from_a_buffer_give_what_the_engine_gives(real: Desk) -> None:
    engine = real.residents.main.engine  # type: ignore[attr-defined]
    for output, name in ((Output.LOGITS, "logits"), (Output.HIDDEN, "hidden")):
        expected = await engine.infer(InferenceRequest(IDS, name))
        wanted = torch.from_numpy(np.frombuffer(expected.data, "<f4").reshape(expected.shape).copy())
        same(await run(real, InlineIds(IDS), output=output), wanted)
        for number, kind in enumerate((torch.uint8, torch.int32, torch.int64)):
            dtype = (DType.UINT8, DType.INT32, DType.INT64)[number]
            kept = await put(real, 10 + number, dtype, torch.tensor([IDS], dtype=kind))
            same(await run(real, kept, output=output), wanted)
            same(await run(real, kept, output=output, last_only=True), wanted[-1:])


@pytest.mark.parametrize("dtype", TYPES)
async def test_embeddings_of_a_buffer_give_what_their_ids_give(real: Desk, table: torch.Tensor, dtype: DType) -> None:
    by_ids = await run(real, InlineIds(IDS))
    kept = await put(real, 1, dtype, table[list(IDS)].to(TYPES[dtype]))
    if dtype is DType.BFLOAT16:
        found = await run(real, kept)
        assert float((found - by_ids).abs().mean() / by_ids.std()) < 0.05
    else:
        same(await run(real, kept), by_ids)


async def test_a_result_that_is_kept_is_a_buffer_of_the_session(real: Desk) -> None:
    wanted = await run(real, InlineIds(IDS), output=Output.HIDDEN)
    told = await real.ask(Run(NAME, InlineIds(IDS), Output.HIDDEN, keep_as=5))
    assert isinstance(told, Allocated)
    assert (told.handle, told.dtype, told.shape) == (5, DType.FLOAT32, tuple(wanted.shape))
    _, kept = await real.read(Read(5))
    same(torch.from_numpy(np.frombuffer(kept, "<f4").reshape(told.shape).copy()), wanted)
    await real.ask(Run(NAME, InlineIds(IDS[::-1]), Output.HIDDEN, keep_as=5))
    _, other = await real.read(Read(5))
    assert other != kept, "the same buffer, written anew"
    same(await run(real, FromBuffer(5)), await run(real, FromBuffer(5)))  # hidden states are embeddings by their shape
    refused = await refusal(real, Run(NAME, InlineIds(IDS[:3]), Output.HIDDEN, keep_as=5))
    assert (refused.code, refused.details["field"]) == (ErrorCode.BAD_REQUEST, "handle")


async def test_what_cannot_be_run_is_refused(real: Desk, table: torch.Tensor) -> None:
    async def code_of(inputs: Any, **more: Any) -> ErrorCode:
        return (await refusal(real, Run(**{"model": NAME, "inputs": inputs, **more}))).code

    context = real.residents.main.context_tokens  # type: ignore[attr-defined]
    assert await code_of(FromBuffer(9)) is ErrorCode.UNKNOWN_HANDLE
    assert await code_of(InlineIds((10**9,))) is ErrorCode.BAD_REQUEST
    assert await code_of(InlineIds((1,) * (context + 1))) is ErrorCode.CONTEXT_EXCEEDED
    assert await code_of(InlineIds(IDS), model="nobody") is ErrorCode.MODEL_NOT_FOUND
    await real.ask(Alloc(1, DType.UINT8, (1 << 24,)))
    assert await code_of(FromBuffer(1)) is ErrorCode.CONTEXT_EXCEEDED, "before any of it is looked at"
    await real.ask(Alloc(2, DType.COMPLEX64, (4, 32)))
    assert await code_of(FromBuffer(2)) is ErrorCode.UNSUPPORTED
    await real.ask(Alloc(3, DType.FLOAT32, (4, 31)))
    assert await code_of(FromBuffer(3)) is ErrorCode.BAD_REQUEST
    await put(real, 4, DType.FLOAT32, table[:2] * float("nan"))
    assert await code_of(FromBuffer(4)) is ErrorCode.BAD_REQUEST
    await real.ask(Alloc(5, DType.INT32, (0,)))
    assert await code_of(FromBuffer(5)) is ErrorCode.BAD_REQUEST


async def test_a_model_that_is_not_there_is_not_brought_in() -> None:
    fleet = Fleet((Model(NAME),))
    async with running(fleet, loaded=False) as one:
        refused = await refusal(one, Run(NAME, InlineIds(IDS)))
        assert (refused.code, refused.details["field"]) == (ErrorCode.BAD_REQUEST, "model")
        assert fleet.script(NAME).loads == 0
        fleet.script(NAME).load_gate.clear()
        loading = asyncio.create_task(one.residents.start())  # type: ignore[attr-defined]
        await until_true(lambda: one.residents.main.state == "loading")  # type: ignore[attr-defined]
        stream = await one.open(Run(NAME, InlineIds(IDS), caller="ben", cache_salt="s"))
        assert isinstance(await stream.message(), Progress)
        fleet.script(NAME).load_gate.set()
        await loading
        room = bytearray()
        while (frame := await stream.receive()).type is T.PROGRESS:
            stream.release(frame)
        stream.release(frame)
        while len(room) < 4 * 2 * len(IDS):
            frame = await stream.receive()
            room += frame.payload
            stream.release(frame)
        assert np.frombuffer(room, "<f4")[:2].tolist() == [3.0, 6.0]
        (asked,) = fleet.script(NAME).inferences
        assert asked == replace(asked, ids=IDS, output="logits", last_only=False)
        assert "ben" in asked.caller and asked.cache_salt.endswith("s")


async def test_no_session_reads_the_tensors_of_another_one(real: Desk) -> None:
    kept = await put(real, 1, DType.INT32, torch.tensor(IDS, dtype=torch.int32))
    residents = real.residents  # type: ignore[attr-defined]
    async with desk(residents, 2, handlers={T.RUN: Runs(Models(residents)).handle}) as another:
        assert (await refusal(another, Run(NAME, kept))).code is ErrorCode.UNKNOWN_HANDLE
        await another.ask(Run(NAME, InlineIds(IDS), keep_as=1))
    assert (await real.read(Read(1)))[0].dtype is DType.INT32


class Ledger:
    """Residents, and what was asked of their account."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self.moves: list[tuple[str, int]] = []

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self._residents.accounts

    async def reserve(self, owner: str, device: str, size_bytes: int) -> str:
        found = await self._residents.reserve(owner, device, size_bytes)
        self.moves.append((device, size_bytes))
        return found

    def release(self, owner: str, device: str, size_bytes: int) -> None:
        self._residents.release(owner, device, size_bytes)
        self.moves.append((device, -size_bytes))


async def test_a_large_result_is_the_sessions_until_it_is_sent() -> None:
    fleet = Fleet((Model(NAME),), budget=1000 + 2048 + 64)  # the model, and as much beside it
    async with running(fleet) as one:
        residents = one.residents  # type: ignore[attr-defined]
        ledger = Ledger(residents)
        async with desk(ledger, 2, handlers={T.RUN: Runs(Models(residents), unbooked_bytes=16).handle}) as other:
            assert len((await other.read(Run(NAME, InlineIds((1, 2)))))[1]) == 16
            assert ledger.moves == []
            assert len((await other.read(Run(NAME, InlineIds(IDS))))[1]) == 64
            await other.settled()
            assert ledger.moves == [("cpu", 64), ("cpu", -64)]
            assert (await refusal(other, Run(NAME, InlineIds((*IDS, 1))))).code is ErrorCode.NO_ROOM
            assert residents.loaded, "the model that gave it did not leave for it"
