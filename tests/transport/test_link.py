"""One connection of a client, against a node that is played."""

import asyncio
import socket
import ssl

import pytest

from tests.fakes.relay_node import FakeRelayNode, Refusal, fake_relay_node
from tests.transport.certificates import server_context, trusting_context
from transport.errors import ConnectFailed, ConnectionLost, Refused, WrongToken
from transport.link import Access, Caller, Link, Place, connect
from wire.frames import FrameType
from wire.messages_memory import Read
from wire.messages_session import Error, ErrorCode, GoodbyeReason
from wire.messages_stats import Stats
from wire.messages_work import Done, Embed, Generate, Load, Loaded, TextPrompt, Tokens, Vectors

OPEN = Access(None)
ASKED = Generate("tiny", TextPrompt("Paris?"))


async def test_a_request_is_answered_and_progress_told():
    async with fake_relay_node() as node:
        link = await connect(node.place, OPEN, Caller("phone"))
        told = []
        loaded = await link.ask(Load("tiny"), told.append)
        assert isinstance(loaded, Loaded) and loaded.context_tokens == 256
        assert [progress.done for progress in told] == [5, 10]
        assert node.heard[0].name == "phone"
        await link.close()
        assert node.goodbyes[0].reason is GoodbyeReason.FINISHED and not node.sessions


async def test_the_welcome_says_who_the_node_is():
    async with fake_relay_node(name="attic", grace_seconds=12) as node:
        link = await connect(node.place, OPEN)
        assert (link.welcome.name, link.welcome.grace_seconds, link.welcome.resumed) == ("attic", 12, False)
        assert link.welcome.session_key in node.sessions
        await link.close()


async def test_several_vectors_become_one_answer():
    async with fake_relay_node() as node:
        link = await connect(node.place, OPEN)
        vectors = await link.ask(Embed("tiny", ("a", "bb", "ccc")))
        assert isinstance(vectors, Vectors)
        assert memoryview(vectors.data).cast("f").tolist() == [1, 1, 2, 2, 1, 2, 3, 1, 2]
        assert (vectors.first, vectors.total, vectors.prompt_tokens) == (0, 3, 9)
        await link.close()


async def test_a_ping_comes_back():
    async with fake_relay_node() as node:
        link = await connect(node.place, OPEN)
        assert 0 <= await link.ping(signal_dbm=-70) < 5
        await link.close()
        with pytest.raises(ConnectionLost):
            await link.ping()


async def test_a_refusal_leaves_the_link_well():
    async with fake_relay_node() as node:
        node.script.refusals.append(
            Refusal(FrameType.LOAD, Error(ErrorCode.NO_ROOM, "full", 500, (("free_bytes", 7),)))
        )
        link = await connect(node.place, OPEN)
        with pytest.raises(Refused) as refused:
            await link.ask(Load("tiny"))
        assert (refused.value.code, refused.value.retry_after_ms) == (ErrorCode.NO_ROOM, 500)
        assert refused.value.details == {"free_bytes": 7}
        assert isinstance(await link.ask(Stats()), Stats)
        await link.close()


@pytest.mark.parametrize(("ours", "theirs"), [("right", "wrong"), (None, "right"), ("right", None)])
async def test_without_the_same_token_nobody_talks(ours, theirs):
    async with fake_relay_node(token=theirs) as node:
        with pytest.raises(WrongToken):
            await connect(node.place, Access(ours))
        await node.until(lambda: not node._peers)
        assert not node.links


async def test_with_the_same_token_both_have_proved_it():
    async with fake_relay_node(token="shared") as node:
        link = await connect(node.place, Access("shared"))
        assert link.welcome.proof
        await link.close()


def test_a_token_is_in_no_representation():
    assert "secret" not in repr(Access("secret"))


async def test_nobody_there_says_so_in_words():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        place = Place("127.0.0.1", bound.getsockname()[1])
        with pytest.raises(ConnectFailed, match="connection refused") as failed:
            await connect(place, OPEN)
    assert failed.value.address == str(place)


async def test_who_listens_and_says_nothing_is_given_up():
    async with fake_relay_node() as node:
        node.mute = True
        with pytest.raises(ConnectFailed, match=r"no answer within 0\.05 s"):
            await connect(node.place, OPEN, timeout_seconds=0.05)


async def test_something_else_that_listens_is_no_node():
    async def hang_up(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ConnectFailed):
            await connect(Place("127.0.0.1", server.sockets[0].getsockname()[1]), OPEN)


async def test_a_node_that_has_no_room_for_us_says_why():
    async with fake_relay_node() as node:
        node.refuse_handshakes.append(Error(ErrorCode.BUSY, "too many clients", 2000))
        with pytest.raises(Refused, match="too many clients"):
            await connect(node.place, OPEN)


async def test_a_cut_is_told_to_every_stream_and_to_the_owner_once():
    lost = []
    async with fake_relay_node(gate=asyncio.Semaphore(0)) as node:
        link = await connect(node.place, OPEN, on_lost=lost.append)
        asks = [asyncio.ensure_future(link.ask(ASKED)) for _ in range(3)]
        await node.heard_of(Generate, 3)
        node.cut()
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 3
        assert lost == [link] and isinstance(link.lost, ConnectionLost)
        with pytest.raises(ConnectionLost):
            await link.open(ASKED)
        await link.wait_closed()


async def test_a_node_that_stops_lets_the_running_answer_end_and_takes_no_other():
    async with fake_relay_node(gate=asyncio.Semaphore(0)) as node:
        link = await connect(node.place, OPEN)
        stream = await link.open(ASKED)
        await node.heard_of(Generate)
        node.goodbye(GoodbyeReason.STOPPING, "maintenance")
        await link.ping()  # comes after the goodbye
        assert link.draining
        with pytest.raises(Refused, match="maintenance") as refused:
            await link.open(ASKED)
        assert refused.value.code is ErrorCode.STOPPING
        for _ in range(5):
            node.script.gate.release()
        told = [await stream.message() for _ in range(6)]
        assert isinstance(told[-1], Done)
        await link.wait_closed()
        await node.until(lambda: bool(node.goodbyes))
        assert node.goodbyes[0].reason is GoodbyeReason.STOPPING
        assert "maintenance" in str(link.lost) and link.keeps_session


async def closed_in_a_cancelled_task(node: FakeRelayNode) -> tuple[Link, asyncio.Task[None], asyncio.Event]:
    """A link to a node that hears nothing, whose owner was cancelled and closes it now; the event tells that it has."""
    link = await connect(node.place, OPEN)
    node.mute = True
    closed = asyncio.Event()

    async def own() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await link.close()
            closed.set()

    owner = asyncio.create_task(own())
    await asyncio.sleep(0)
    owner.cancel()
    return link, owner, closed


async def test_a_goodbye_has_its_end_in_a_task_that_was_cancelled():
    async with fake_relay_node() as node:
        _, owner, closed = await closed_in_a_cancelled_task(node)
        await asyncio.wait({owner})
        assert closed.is_set() and owner.cancelled()


async def test_a_goodbye_that_is_given_up_closes_all_the_same():
    async with fake_relay_node() as node:
        link, owner, closed = await closed_in_a_cancelled_task(node)
        await asyncio.sleep(0)  # the goodbye is said, and waited for
        owner.cancel()
        await asyncio.wait({owner})
        assert owner.cancelled() and not closed.is_set()
        await link.wait_closed()
        await node.until(lambda: not node._peers)


@pytest.mark.parametrize(("reason", "kept"), [("IDLE", False), ("REPLACED", True), ("UNWELCOME", False)])
async def test_other_goodbyes_end_the_link_at_once(reason, kept):
    async with fake_relay_node(gate=asyncio.Semaphore(0)) as node:
        link = await connect(node.place, OPEN)
        asked = asyncio.ensure_future(link.ask(ASKED))
        await node.heard_of(Generate)
        node.goodbye(GoodbyeReason[reason])
        with pytest.raises(ConnectionLost):
            await asked
        await link.wait_closed()
        assert link.keeps_session is kept


async def test_closing_a_stream_early_cancels_the_work():
    async with fake_relay_node(gate=asyncio.Semaphore(1)) as node:
        link = await connect(node.place, OPEN)
        stream = await link.open(ASKED)
        assert isinstance(await stream.message(), Tokens)
        stream.cancel()
        await node.until(lambda: bool(node.cancelled))
        await link.close()


async def test_a_session_key_brings_the_session_back():
    async with fake_relay_node() as node:
        first = await connect(node.place, OPEN)
        key = first.welcome.session_key
        first.cut("by the test")
        await first.wait_closed()
        second = await connect(node.place, OPEN, Caller(session_key=key))
        assert second.welcome.resumed and second.welcome.session_key == key
        await second.close()


async def test_tls_is_around_it_all():
    trusting = trusting_context()
    async with fake_relay_node(token="shared", tls=server_context()) as node:
        link = await connect(node.place, Access("shared", trusting, "node.test"))
        assert isinstance(await link.ask(Stats()), Stats)
        await link.close()
        with pytest.raises(ConnectFailed, match="TLS"):
            await connect(node.place, Access("shared", trusting, "other.test"))
        with pytest.raises(ConnectFailed, match="TLS"):
            await connect(node.place, Access("shared", ssl.create_default_context(), "node.test"))


async def test_an_unknown_buffer_is_refused():
    async with fake_relay_node() as node:
        link = await connect(node.place, OPEN)
        with pytest.raises(Refused) as refused:
            await link.ask(Read(5))
        assert refused.value.code is ErrorCode.UNKNOWN_HANDLE
        await link.close()
