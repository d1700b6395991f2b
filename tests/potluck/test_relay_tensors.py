"""Tensors in a node's memory and models run on them, by the asyncio client against a node that is played."""

import array
import hashlib

import pytest

from potluck import (
    Misuse,
    SessionLost,
)
from tests.fakes.relay_node import fake_relay_node
from tests.potluck.played import relay_of
from wire.messages_memory import Free, Read, Run


@pytest.mark.parametrize("size", [0, 1, 1000, (16 << 20) * 2 + 12345])
async def test_bytes_come_back_as_they_went(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with fake_relay_node(frame_bytes=1 << 20) as node, relay_of(node) as relay:
        told = []
        tensor = await relay.tensor(data)
        assert (tensor.dtype, tensor.shape, tensor.device, tensor.nbytes) == ("uint8", (size,), "cpu", size)
        back = await tensor.get(on_bytes=told.append)
        assert back.data == data
        assert sum(told) == size
        assert await tensor.free() == size
        assert await tensor.free() == 0


async def test_what_is_read_lands_in_the_callers_memory():
    async with fake_relay_node() as node, relay_of(node) as relay:
        numbers = array.array("f", range(100))
        async with await relay.tensor(numbers) as tensor:
            into = array.array("f", bytes(400))
            got = await tensor.get(into)
            assert into == numbers and got.data.obj is into
            with pytest.raises(Misuse):
                await tensor.get(bytearray(5))
            with pytest.raises(Misuse):
                await tensor.get(bytes(400))
        assert node.asked(Free)


async def test_a_part_is_written_and_read():
    async with fake_relay_node() as node, relay_of(node) as relay:
        tensor = await relay.tensor(dtype="int32", shape=(4, 2))
        await tensor.put([7, 8], offset=8, checked=True)
        assert (await tensor.get()).tolist() == [[0, 0], [7, 8], [0, 0], [0, 0]]
        part = await tensor.get(offset=8, shape=(2,), checked=True)
        assert part.tolist() == [7, 8]
        for wrong in ({"data": [1, 2]}, {"data": [1], "offset": 32}, {"data": array.array("f", [1] * 8)}):
            with pytest.raises(Misuse):
                await tensor.put(wrong.pop("data"), **wrong)
        with pytest.raises(Misuse):
            await tensor.get(offset=28, shape=(2,))


@pytest.mark.parametrize("frames", [0, 1, 3, 20, 36])
async def test_a_cut_in_the_middle_of_a_tensor_is_not_seen(frames):
    data = bytes(range(256)) * (36 << 12)  # 36 MiB: three pieces
    async with fake_relay_node(frame_bytes=1 << 20) as node, relay_of(node) as relay:
        tensor = await relay.tensor(shape=(len(data),), dtype="uint8")
        node.cut_after(min(frames, 2))  # acknowledgements of the pieces
        await tensor.put(data)
        node.cut_after(frames)
        assert hashlib.sha256((await tensor.get()).data).digest() == hashlib.sha256(data).digest()
        assert node.accepted == 3


async def test_a_buffer_that_the_node_has_freed_is_not_made_up():
    async with fake_relay_node() as node, relay_of(node) as relay:
        tensor = await relay.tensor([1.0, 2.0])
        node.forget()
        node.cut()
        await node.until(lambda: node.accepted == 2)
        with pytest.raises(SessionLost):
            await tensor.get()


async def test_a_model_runs_on_ids_and_on_tensors():
    async with fake_relay_node() as node, relay_of(node) as relay:
        logits = await relay.run("tiny", [1, 2, 3])
        assert (logits.dtype, logits.shape) == ("float32", (3, 16))
        assert [row.index(1.0) for row in logits.tolist()] == [2, 3, 4]
        ids = await relay.tensor([4, 5])
        hidden = await relay.run("tiny", ids, output="hidden", keep=True)
        assert hidden.shape == (2, 4)
        assert (await hidden.get()).tolist() == [[4.0] * 4, [5.0] * 4]
        again = await relay.run("tiny", hidden, last_only=True)
        assert again.tolist()[0].index(1.0) == 6
        with pytest.raises(Misuse):
            await relay.run("tiny", [1], output="loss")  # type: ignore[call-overload]


async def test_a_run_is_asked_again_after_a_cut():
    async with fake_relay_node(frame_bytes=64) as node, relay_of(node) as relay:
        node.cut_after(2)
        assert (await relay.run("tiny", list(range(9)))).shape == (9, 16)
        assert len(node.asked(Run)) == 2


async def test_reading_a_buffer_asks_for_it_in_pieces():
    async with fake_relay_node() as node, relay_of(node) as relay:
        tensor = await relay.tensor(shape=(33 << 20,), dtype="uint8")
        await tensor.get()
        assert [read.size >> 20 for read in node.asked(Read)] == [16, 16, 1]
