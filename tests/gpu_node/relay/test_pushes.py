"""PUSH over a real connection: acknowledged chunk by chunk, taken up after cuts, refused in plain words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu_node.errors import NodeError, StoreRefused
from gpu_node.pushed import PushedModels
from gpu_node.relay.call import RelayCall
from gpu_node.relay.errors import failure_of
from gpu_node.relay.pushes import Pushes, PushLimits
from gpu_node.staging import Incoming, Staging
from tests.gpu_node.offers import Files, chunk, chunks_of, files_of, offer_of
from tests.transport.pair import Pair, pair
from transport.errors import ConnectionLost, ProtocolBroken, Refused, StreamEnded, TransportError
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.errors import RemoteError
from wire.frames import FrameType
from wire.messages import encode_chunk, encode_message
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Chunk, Phase, Progress, Push

PLENTY = 1 << 50


class Slow:
    """A store whose offers wait at its gate, in their thread."""

    def __init__(self, staging: Staging) -> None:
        self.staging, self.gate, self.begun = staging, threading.Event(), threading.Event()

    def begin(self, offer: Push) -> Incoming:
        self.begun.set()
        assert self.gate.wait(60)
        return self.staging.begin(offer)


class Node:
    """The serving side: runs the handler for every request, as the relay does."""

    def __init__(self, folder: Path, **limits: float) -> None:
        self.pushed = PushedModels(folder / "pushed")
        self.store = Staging(self.pushed, free=lambda _: PLENTY)
        self.taken: set[str] = set()
        self.arrived: list[str] = []
        self.pushes = Pushes(self.store, self.taken.__contains__, self._arrived, PushLimits(**limits))
        self.tasks: set[asyncio.Task[None]] = set()

    async def _arrived(self, model: str) -> None:
        assert self.pushed.find(model) is not None
        self.arrived.append(model)

    def serve(self, both: Pair) -> None:
        both.server.at_request = self._begin

    def _begin(self, stream: Stream, request: FrameReceived) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(stream, request))
        self.tasks.add(task)

    async def _handle(self, stream: Stream, request: FrameReceived) -> None:
        try:
            await self.pushes.handle(RelayCall(SimpleNamespace(owner="session 1"), stream, request))
        except NodeError as error:
            failure = failure_of(error)
            stream.fail(failure.code, failure.text, details=failure.details)
        except RemoteError as error:
            stream.break_off(error)
        except TransportError:
            pass  # nobody is left to hear it

    async def close(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.tasks), 60)


@asynccontextmanager
async def serving(node: Node) -> AsyncIterator[Pair]:
    try:
        async with pair() as both:
            node.serve(both)
            yield both
    finally:
        await node.close()


@pytest.fixture(scope="module")
def files(tiny_folder: Path) -> Files:
    return files_of(tiny_folder)


async def offered(both: Pair, model: str, files: Files, ends: bool = False) -> Stream:
    return await both.client.driver.open(FrameType.PUSH, *encode_message(offer_of(model, files)), ends=ends)


async def answer(stream: Stream) -> Ack:
    message = await stream.message()
    assert isinstance(message, Ack), message
    return message


async def send(stream: Stream, one: Chunk, ends: bool = False) -> None:
    await stream.send(FrameType.DATA, *encode_chunk(one), ends=ends)


async def push(both: Pair, model: str, files: Files, size: int = 1 << 17) -> Ack:
    """All that is missing, each chunk acknowledged."""
    stream = await offered(both, model, files)
    rest = list(chunks_of(files, (await answer(stream)).held, size))
    for number, one in enumerate(rest, start=1):
        await send(stream, one, ends=number == len(rest))
        if number < len(rest):
            assert await answer(stream) == Ack(one.offset + len(one.data))
    if not rest:
        await stream.send(FrameType.DATA, ends=True)
    last = await answer(stream)
    with pytest.raises(StreamEnded):
        await stream.receive()
    return last


async def refusal(stream: Stream) -> Refused:
    with pytest.raises(Refused) as caught:
        while True:
            await stream.message()
    stream.cancel()
    return caught.value


async def test_a_model_comes_chunk_by_chunk_and_is_there(tmp_path: Path, files: Files) -> None:
    node, sizes = Node(tmp_path), tuple(map(len, files.values()))
    async with serving(node) as both:
        assert await push(both, "Anna/Tiny", files) == Ack(sum(sizes), sizes)
        assert node.arrived == ["anna/tiny"]
        assert await push(both, "anna/tiny", files) == Ack(sum(sizes), sizes)
        again = await offered(both, "anna/tiny", files, ends=True)
        assert await answer(again) == Ack(sum(sizes), sizes)
    assert node.arrived == ["anna/tiny"], "what was here already is no news"


async def test_many_chunks_on_their_way_at_once(tmp_path: Path, files: Files) -> None:
    """A client need not wait for each answer; credit keeps it from being too quick."""
    node = Node(tmp_path)
    async with serving(node) as both:
        stream = await offered(both, "tiny", files)
        await answer(stream)
        parts = list(chunks_of(files, size=1 << 12))

        async def send_all() -> None:
            for number, one in enumerate(parts, start=1):
                await send(stream, one, ends=number == len(parts))

        sending = asyncio.create_task(send_all())
        answers = [await answer(stream) for _ in parts]
        await sending
    assert [one.amount for one in answers[:-1]] == [part.offset + len(part.data) for part in parts[:-1]]
    assert node.arrived == ["tiny"]


async def test_a_cut_at_every_chunk_and_a_new_connection_each_time(tmp_path: Path, files: Files) -> None:
    node, told = Node(tmp_path), 0
    sizes = [len(data) for data in files.values()]
    while not node.arrived:
        async with serving(node) as both:
            stream = await offered(both, "tiny", files)
            held = (await answer(stream)).held
            assert sum(held) >= told, "nothing that was acknowledged is lost"
            rest = list(chunks_of(files, held, 1 << 17))
            for one in rest[:1]:
                await send(stream, one, ends=len(rest) == 1)
                told = sum(held) + (await answer(stream)).amount - one.offset if len(rest) > 1 else sum(sizes)
            if len(rest) == 1:
                assert await answer(stream) == Ack(sum(sizes), tuple(sizes))
    assert files_of(node.pushed.find("tiny").path).keys() > files.keys()


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        (lambda first: Chunk(0, 0, b"\0" * 32, first), ErrorCode.DIGEST_MISMATCH, "not what its digest says"),
        (lambda first: chunk(0, 1, first[1:]), ErrorCode.BAD_REQUEST, "goes on at 0"),
        (lambda first: chunk(0, 0, first + b"x"), ErrorCode.BAD_REQUEST, "and the chunk ends at"),
        (lambda first: chunk(99, 0, first), ErrorCode.BAD_REQUEST, "no file 99"),
    ],
)
async def test_wrong_chunks_end_the_push_and_change_nothing(
    tmp_path: Path, files: Files, wrong: Callable[[bytes], Chunk], code: ErrorCode, told: str
) -> None:
    node = Node(tmp_path)
    async with serving(node) as both:
        stream = await offered(both, "tiny", files)
        await answer(stream)
        await send(stream, wrong(next(iter(files.values()))))
        refused = await refusal(stream)
        assert (refused.code, told in refused.text) == (code, True)
        assert (await push(both, "tiny", files)).held
        assert node.arrived == ["tiny"], "the connection is well, and the next push too"


async def test_what_is_no_chunk_is_the_peers_fault(tmp_path: Path, files: Files) -> None:
    async with serving(Node(tmp_path)) as both:
        stream = await offered(both, "tiny", files)
        await answer(stream)
        await stream.send(FrameType.DATA, b"\xff" * 50)
        with pytest.raises(ConnectionLost, match="a number is wider"):
            await stream.receive()
    (lost,) = both.server.losses
    assert isinstance(lost, ProtocolBroken) and lost.code is ErrorCode.BAD_PAYLOAD


async def test_an_end_before_the_end_says_what_has_to_come(tmp_path: Path, files: Files) -> None:
    async with serving(Node(tmp_path)) as both:
        stream = await offered(both, "tiny", files)
        await answer(stream)
        await send(stream, chunk(0, 0, next(iter(files.values()))), ends=True)
        refused = await refusal(stream)
        assert refused.code is ErrorCode.DIGEST_MISMATCH
        assert refused.details["files"] == tuple(files)[1:]
        asked = await refusal(await offered(both, "tiny", files, ends=True))
        assert asked.details["files"] == tuple(files)[1:]


@pytest.mark.parametrize(
    ("model", "more", "told"),
    [
        ("tiny", {"pytorch_model.bin": b"x"}, "can run any code"),
        ("default", {}, "this node's own models"),
    ],
)
async def test_refusals_are_plain(tmp_path: Path, files: Files, model: str, more: Files, told: str) -> None:
    node = Node(tmp_path)
    node.taken.add("default")
    async with serving(node) as both:
        refused = await refusal(await offered(both, model, {**files, **more}))
        assert (refused.code, told in refused.text) == (ErrorCode.STORE_REFUSED, True)


async def test_a_node_may_take_no_models(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path)
    node.pushes = Pushes(None, node.taken.__contains__, node._arrived)
    async with serving(node) as both:
        refused = await refusal(await offered(both, "tiny", files))
        assert (refused.code, "takes no models" in refused.text) == (ErrorCode.STORE_REFUSED, True)


async def test_a_full_disk_comes_with_its_numbers(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path)
    full = Staging(node.pushed, free=lambda _: 0)
    node.pushes = Pushes(full, node.taken.__contains__, node._arrived)
    async with serving(node) as both:
        refused = await refusal(await offered(both, "tiny", files))
        assert refused.code is ErrorCode.STORE_REFUSED
        assert refused.details == {"free_bytes": 0, "needed_bytes": sum(map(len, files.values()))}


async def test_the_second_client_waits_and_then_finds_it_done(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path)
    async with serving(node) as first, serving(node) as second:
        begun = await offered(first, "tiny", files)
        held = (await answer(begun)).held
        waits = await offered(second, "Tiny", files)
        assert await waits.message() == Progress(Phase.WAITING, text="other clients are pushing")
        parts = list(chunks_of(files, held))
        for number, one in enumerate(parts, start=1):
            await send(begun, one, ends=number == len(parts))
            await answer(begun)
        assert (await answer(waits)).held == tuple(map(len, files.values()))
        await waits.send(FrameType.DATA, ends=True)
        await answer(waits)
    assert node.arrived == ["tiny"]


async def test_a_silent_client_loses_its_turn_and_nothing_else(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path, silence_seconds=3.0)  # in which the others have come, on a busy machine too
    async with serving(node) as first, serving(node) as second:
        silent = await offered(first, "tiny", files)
        await answer(silent)
        await send(silent, chunk(0, 0, next(iter(files.values()))))
        await answer(silent)
        waits = await offered(second, "tiny", files)
        assert isinstance(await waits.message(), Progress)
        assert "nothing was heard" in (await refusal(silent)).text
        assert (await answer(waits)).held[0] == len(next(iter(files.values())))
        waits.cancel()


async def test_who_waits_too_long_is_told(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path, turn_seconds=0.01)
    async with serving(node) as first, serving(node) as second:
        begun = await offered(first, "tiny", files)
        await answer(begun)
        refused = await refusal(await offered(second, "tiny", files))
        assert (refused.code, "by another client" in refused.text) == (ErrorCode.STORE_REFUSED, True)
        begun.cancel()


async def test_pushes_are_bounded(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path, open=1, inside=2)
    async with serving(node) as both:
        first = await offered(both, "one", files)
        await answer(first)
        second = await offered(both, "two", files)
        assert isinstance(await second.message(), Progress)
        assert (await refusal(await offered(both, "three", files))).code is ErrorCode.BUSY
        first.cancel()
        assert (await answer(second)).held == (0,) * len(files)
        second.cancel()


async def test_a_cancelled_push_lets_go_when_its_thread_has(tmp_path: Path, files: Files) -> None:
    node = Node(tmp_path)
    slow = Slow(node.store)
    node.pushes = Pushes(slow, node.taken.__contains__, node._arrived)
    async with serving(node) as both:
        await offered(both, "tiny", files)
        assert await asyncio.to_thread(slow.begun.wait, 20)
        (task,) = node.tasks
        for _ in range(3):  # whoever ends it may not be patient
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        slow.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        node.tasks.clear()
        node.store.begin(offer_of("tiny", files)).close()  # nobody holds it


def test_the_store_is_what_refuses() -> None:
    assert failure_of(StoreRefused("full", free_bytes=1, needed_bytes=2)).details == (
        ("free_bytes", 1),
        ("needed_bytes", 2),
    )
