"""Tensors over a whole relay: cut and taken up again, in each other's way, and gone with their session."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpu_node.relay.host_memory import HostMemory
from tests.gpu_node.relay.memory_desk import T, tensor
from tests.gpu_node.relay.relayed import Alarm, Relayed, failure, scripted, until_true
from tests.gpu_node.serving import WISH, Fleet, Model
from transport.codec import crc32
from transport.errors import Refused
from transport.link import Link
from transport.streams import Stream
from wire.messages_memory import Alloc, Allocated, Free, FromBuffer, InlineIds, Read, Run
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Load, Loaded
from wire.tensors import DType, TensorFlags, pack_tensor_header

SIZE = 3_000_000
DATA = bytes(at * 31 % 251 for at in range(SIZE))
MODEL_BYTES = 1000 + 2048


@pytest.fixture(autouse=True)
def no_garbage_is_collected() -> Iterator[None]:
    """What goes only with the collector's next round is not given back in time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def begin_write(link: Link, offset: int, end: int, sent: int, flags: TensorFlags = TensorFlags.NONE) -> Stream:
    """A piece of the tensor, of which only the bytes up to `sent` follow."""
    checksum = crc32(memoryview(DATA)[offset:end], 0) if flags else 0
    header = tensor(1, end - offset, offset, SIZE, flags=flags, checksum=checksum)
    stream = await link.open_raw(T.WRITE, pack_tensor_header(header, crc32), ends=False)
    for start in range(offset, sent, 200_000):
        stop = min(start + 200_000, sent)
        await stream.send(T.DATA, memoryview(DATA)[start:stop], ends=stop == end)
    return stream


async def until_there(here: Relayed, link: Link, size: int) -> None:
    with here.session(link).buffers.get(1).use() as memory:
        assert isinstance(memory, HostMemory)
        await until_true(lambda: memory.view[size - 1] == DATA[size - 1])


async def content(link: Link, size: int = SIZE) -> bytes:
    stream = await link.open(Read(1, checksum=True))
    stream.release(await stream.receive())
    found = bytearray()
    while len(found) < size:
        frame = await stream.receive()
        found += frame.payload
        stream.release(frame)
    return bytes(found)


def code(error: BaseException) -> ErrorCode:
    assert isinstance(error, Refused), error
    return error.code


def used(here: Relayed) -> int:
    return sum(sum(account.buffers.values()) for account in here.residents.accounts)


async def test_a_write_that_was_cut_is_taken_up_where_it_was() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (SIZE,)))
        assert await (await begin_write(link, 0, 1_000_000, 1_000_000, TensorFlags.CHECKED)).message() == Ack(1_000_000)
        await begin_write(link, 1_000_000, SIZE, 2_000_000)
        await until_there(here, link, 2_000_000)
        await here.cut(link)
        again = await here.connect(link.welcome.session_key)
        assert again.welcome.resumed
        assert isinstance(await again.ask(Alloc(1, DType.UINT8, (SIZE,))), Allocated), (
            "asking again makes no second one"
        )
        rest = await begin_write(again, 1_000_000, SIZE, SIZE, TensorFlags.CHECKED)
        assert await rest.message() == Ack(2_000_000)
        assert await content(again) == DATA
        assert used(here) == SIZE


async def test_a_cancelled_write_says_how_much_it_has() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (SIZE,)))
        stream = await begin_write(link, 0, SIZE, 600_000)
        await until_there(here, link, 600_000)
        await link.ask(Free((9,)))  # so that all before it has been looked at
        stream.cancel()
        assert await stream.message() == Ack(600_000)


@pytest.mark.parametrize("way", ["goodbye", "grace"])
async def test_whatever_is_under_way_ends_with_its_session_and_all_is_free(way: str) -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times) as (here, _):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (SIZE,)))
        await link.ask(Alloc(2, DType.UINT8, (32 << 20,)))
        await begin_write(link, 0, SIZE, 600_000)
        reading = await link.open(Read(2))
        await reading.receive()  # and no more: the rest waits for credit
        await until_there(here, link, 600_000)
        assert used(here) == SIZE + (32 << 20)
        if way == "goodbye":
            await link.close()
        else:
            await here.cut(link)
            await alarm.advance(29)
            assert used(here) == SIZE + (32 << 20)
            await alarm.advance(2)
        await until_true(lambda: used(here) == 0)
        assert not here.sessions.all


async def test_a_cut_session_makes_room_before_anybody_else() -> None:
    budget = MODEL_BYTES + 3000
    async with scripted(Fleet(wish=replace(WISH, kv_bytes=2048), budget=budget, models=(Model("a"), Model("b")))) as (
        here,
        _,
    ):
        first, second, third = [await here.connect() for _ in range(3)]
        for link in (first, second, third):
            await link.ask(Alloc(1, DType.UINT8, (1000,)))
        refused = await failure(third, Alloc(2, DType.UINT8, (4000,)))
        assert code(refused) is ErrorCode.NO_ROOM
        assert isinstance(refused, Refused) and refused.details == {"free_bytes": 0, "needed_bytes": 4000}
        await here.cut(second)
        await here.cut(first)
        await third.ask(Alloc(2, DType.UINT8, (1000,)))
        assert [one.number for one in here.sessions.all] == [1, 3], "the longest cut one"
        assert not (await here.connect(second.welcome.session_key)).welcome.resumed
        assert [host.name for host in here.residents.loaded] == ["a"]
        await third.ask(Alloc(3, DType.UINT8, (1000,)))
        assert [one.number for one in here.sessions.all] == [3, 4]


async def test_idle_models_leave_for_tensors_but_not_those_that_a_client_holds() -> None:
    budget = 2 * MODEL_BYTES
    async with scripted(Fleet(wish=replace(WISH, kv_bytes=2048), budget=budget, models=(Model("a"), Model("b")))) as (
        here,
        _,
    ):
        holder, other = await here.connect(), await here.connect()
        assert isinstance(await holder.ask(Load("b")), Loaded)
        assert sorted(host.name for host in here.residents.loaded) == ["a", "b"]
        await other.ask(Alloc(1, DType.UINT8, (MODEL_BYTES,)))
        assert [host.name for host in here.residents.loaded] == ["b"]
        assert code(await failure(other, Alloc(2, DType.UINT8, (1,)))) is ErrorCode.NO_ROOM
        assert code(await failure(holder, Load("a"))) is ErrorCode.NO_ROOM, "a live client's tensors stay"
        await here.cut(other)
        assert isinstance(await holder.ask(Load("a")), Loaded)
        assert sorted(host.name for host in here.residents.loaded) == ["a", "b"] and used(here) == 0


async def test_a_model_runs_on_a_tensor_over_the_relay() -> None:
    async with scripted() as (here, fleet):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (SIZE,)))
        name = here.host.name
        kept = await link.ask(Run(name, InlineIds((7, 8)), keep_as=2))
        assert isinstance(kept, Allocated) and kept.shape == (2, 2)
        assert code(await failure(link, Run(name, FromBuffer(1)))) is ErrorCode.CONTEXT_EXCEEDED
        assert [one.ids for one in fleet.script(name).inferences] == [(7, 8)]
        assert used(here) == SIZE + 16
