"""The relay's client against a whole node: what a played one cannot prove."""

import asyncio
import hashlib
import tracemalloc

import pytest

from potluck import AsyncRelay, ModelUnknown, SessionLost
from tests.fakes.tiny_model import write_tiny_model
from transport.pauses import PausePolicy
from transport.session import SessionSettings

QUICK = SessionSettings(name="test", pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01))
ASKED = {"temperature": 0.9, "seed": 11, "max_tokens": 60, "ignore_end": True}


async def cut(relay):
    """The line goes without a word, as when a cable is pulled."""
    link = relay._session.connected
    link.cut("by the test")
    await link.wait_closed()


async def test_an_answer_that_is_cut_again_and_again_is_the_whole_one(node):
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        whole = await relay.generate(node.model, "rivers", **ASKED).finish()
        stream, pieces = relay.generate(node.model, "rivers", **ASKED), 0
        async for _ in stream:
            pieces += 1
            if pieces % 7 == 0:
                await cut(relay)
        assert stream.answer.ids == whole.ids and stream.answer.text == whole.text
        assert len(whole.ids) == 60


async def test_many_answers_survive_a_cut_together(node):
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        prompts = [f"number {number}" for number in range(6)]
        options = {"temperature": 0, "max_tokens": 30, "ignore_end": True}
        alone = [(await relay.generate(node.model, prompt, **options).finish()).ids for prompt in prompts]
        streams = [relay.generate(node.model, prompt, **options) for prompt in prompts]
        for stream in streams:
            await anext(stream)
        await cut(relay)
        answers = await asyncio.gather(*(stream.finish() for stream in streams))
        assert [answer.ids for answer in answers] == alone


async def test_where_the_session_is_gone_the_answer_still_goes_on(node):
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        whole = await relay.generate(node.model, "rivers", **ASKED).finish()
        stream = relay.generate(node.model, "rivers", **ASKED)
        for _ in range(5):
            await anext(stream)
        relay._session._key = b""  # as if the grace had run out
        await cut(relay)
        answer = await stream.finish()
        assert answer.ids == whole.ids and answer.text == whole.text
        assert answer.usage.completion_tokens == 60


@pytest.mark.parametrize("size", [5, (17 << 20) + 3])
async def test_tensors_come_back_as_they_went_also_over_a_cut(node, size):
    data = hashlib.shake_256(b"noise").digest(size)
    async with AsyncRelay(node.place, settings=QUICK) as relay, await relay.tensor(data) as tensor:
        await cut(relay)
        assert (await tensor.get(checked=True)).data == data
        await tensor.put(data[::-1], checked=True)
        assert (await tensor.get()).data == data[::-1]


async def test_a_freed_buffer_is_gone(node):
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        tensor = await relay.tensor([1.0])
        await relay.free(tensor)
        with pytest.raises(SessionLost):
            await tensor.get()


async def test_a_pushed_model_answers_as_its_files_say(node, tmp_path):
    folder = write_tiny_model(tmp_path / "other", seed=4)
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        with pytest.raises(ModelUnknown):
            await relay.load_model("pushed-tiny")
        told = []
        sent = await relay.push("pushed-tiny", folder, on_progress=told.append)
        assert sent == sum(path.stat().st_size for path in folder.iterdir())
        assert await relay.push("pushed-tiny", folder) == sent  # nothing has to go again
        model = await relay.load_model("pushed-tiny")
        assert model.facts["vocabulary"] == 320
        mine = await relay.generate("pushed-tiny", [5, 6, 7], temperature=0, max_tokens=8).finish()
        other = await relay.generate(node.model, [5, 6, 7], temperature=0, max_tokens=8).finish()
        assert mine.ids != other.ids
        await relay.unload("pushed-tiny")


async def test_embeddings_and_figures(node):
    async with AsyncRelay(node.place, settings=QUICK) as relay:
        embeddings = await relay.embed(node.model, ["one", "two", "one"])
        assert embeddings[0] == embeddings[2] != embeddings[1]
        assert sum(value * value for value in embeddings[0]) == pytest.approx(1)
        stats = await relay.stats()
        assert node.model in {record.name for record in stats.models}
        assert stats.devices


async def test_nothing_is_copied_on_this_side(node):
    size = 33 << 20
    data, room = bytes(size), bytearray(size)
    async with (
        AsyncRelay(node.place, settings=QUICK) as relay,
        await relay.tensor(dtype="uint8", shape=(size,)) as tensor,
    ):
        await tensor.put(data)  # what is made once is there now
        tracemalloc.start()
        try:
            await tensor.put(data)
            await tensor.get(room)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 3 << 20  # the protocol's own frames, and no piece of 16 MiB
        kept = await tensor.get()
        assert kept.data == data
