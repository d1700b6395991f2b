"""The asyncio client of a relay node, against a node that is played: connecting, models, refusals, finding."""

import asyncio
import ssl
import time

import pytest

from potluck import (
    AsyncRelay,
    InvalidRequest,
    KeyRefused,
    Misuse,
    ModelUnknown,
    NodeFailed,
    NodeUnreachable,
    NoRoom,
    QueueFull,
    SessionLost,
    TensorData,
)
from tests.fakes.relay_node import Refusal, fake_relay_node
from tests.potluck.played import relay_of
from tests.transport.certificates import server_context, trusting_context
from wire.beacon import Address, Announcement, Probe, pack_beacon, unpack_beacon
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode, GoodbyeReason
from wire.messages_work import Load


async def test_a_model_is_loaded_with_progress_and_given_back():
    async with fake_relay_node() as node, relay_of(node) as relay:
        told = []
        model = await relay.load_model("tiny", on_progress=told.append, context_tokens=64)
        assert (model.name, model.context_tokens, model.facts["vocabulary"]) == ("tiny", 256, 16)
        assert [progress.phase for progress in told] == ["reading", "placing"]
        assert node.asked(Load)[0].options == (("context_tokens", 64),)
        assert await relay.unload("tiny") == 1000


async def test_embeddings_are_one_vector_a_text():
    async with fake_relay_node() as node, relay_of(node) as relay:
        embeddings = await relay.embed("tiny", ["a", "bb", "ccc"])
        assert len(embeddings) == 3 and embeddings[-1] == embeddings[2] == [3.0, 1.0, 2.0]
        assert embeddings.vectors.tolist()[1] == [2.0, 1.0, 2.0]
        assert next(iter(embeddings)) == [1.0, 1.0, 2.0]
        assert embeddings.prompt_tokens == 9


async def test_figures_of_the_node():
    async with fake_relay_node() as node, relay_of(node) as relay:
        stats = await relay.stats()
        assert stats.values["slots"] == 4
        assert 0 < await relay.ping() < 60


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.MODEL_NOT_FOUND, ModelUnknown),
        (ErrorCode.BUSY, QueueFull),
        (ErrorCode.BAD_REQUEST, InvalidRequest),
        (ErrorCode.MODEL_FAILED, NodeFailed),
        (ErrorCode.NO_ROOM, NoRoom),
        (ErrorCode.SESSION_GONE, SessionLost),
    ],
)
async def test_a_refusal_has_the_type_that_says_what_to_do(code, kind):
    async with fake_relay_node() as node, relay_of(node) as relay:
        details = (("free_bytes", 5), ("needed_bytes", 9), ("field", "model"))
        refusal = Refusal(FrameType.LOAD, Error(code, "no", 1500, details))
        node.script.refusals += [refusal] * 2  # after a session's end it is asked once more, in a new one
        with pytest.raises(kind) as refused:
            await relay.load_model("tiny")
        assert (refused.value.code, refused.value.message) == (code.name, "no")
        assert (refused.value.retry_after_seconds, refused.value.field) == (1.5, "model")
        if kind is NoRoom:
            assert (refused.value.free_bytes, refused.value.needed_bytes) == (5, 9)


async def test_the_environments_token_is_the_default(monkeypatch):
    monkeypatch.setenv("VRM_API_TOKEN", "shared")
    async with fake_relay_node(token="shared") as node, relay_of(node) as relay:
        await relay.stats()
    async with fake_relay_node(token="other") as node:
        with pytest.raises(KeyRefused):
            await AsyncRelay.connect(str(node.place))


async def test_tls():
    async with fake_relay_node(token="t", tls=server_context()) as node:
        options = {"token": "t", "server_name": "node.test"}
        relay = await AsyncRelay.connect(str(node.place), tls=trusting_context(), **options)
        await relay.stats()
        await relay.aclose()
        with pytest.raises(NodeUnreachable):
            await AsyncRelay.connect(str(node.place), tls=True, **options)


async def test_nobody_there():
    async with fake_relay_node() as node:
        await node.stop()
        with pytest.raises(NodeUnreachable, match="no node answers") as failed:
            async with relay_of(node):
                pass
        assert failed.value.place == str(node.place)


async def test_closing_frees_everything_on_the_node():
    async with fake_relay_node() as node:
        async with relay_of(node) as relay:
            await relay.tensor([1, 2, 3])
        await node.until(lambda: not node.sessions)
        assert node.goodbyes[0].reason is GoodbyeReason.FINISHED


@pytest.mark.parametrize("address", ["", "host:0", "host:x", "[::1]:99999", ":8765"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(Misuse):
        AsyncRelay(address)


@pytest.mark.parametrize(
    ("address", "place"),
    [("node", "node:8765"), ("10.0.0.7:9", "10.0.0.7:9"), ("::1", "[::1]:8765"), ("[::1]:9", "[::1]:9")],
)
def test_addresses(address, place):
    assert AsyncRelay(address).place == place


def test_a_tls_context_is_taken_as_it_is():
    context = ssl.create_default_context()
    assert AsyncRelay("node", tls=context)._session._access.tls is context
    assert isinstance(TensorData(memoryview(b""), "uint8", (0,)), TensorData)


class Answering(asyncio.DatagramProtocol):
    """A node that answers probes."""

    def __init__(self, token):
        self.token = token

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, datagram, source):
        probe, _ = unpack_beacon(datagram, self.token)
        assert isinstance(probe, Probe)
        now = int(time.time() * 1000)
        told = Announcement(
            bytes(range(16)), 3, 1, now, "attic", (Address("127.0.0.1", 8765),), ("tiny",), False, 5_000, 9_000, 0.5,
            answers=probe.nonce, token_wanted=True,
        )  # fmt: skip
        self.transport.sendto(pack_beacon(told, self.token), source)


async def test_nodes_are_discovered():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Answering("shared"), ("127.0.0.1", 0))
    places = [("127.0.0.1", transport.get_extra_info("sockname")[1])]
    [found] = await AsyncRelay.discover(10, token="shared", enough=1, places=places, this_machine=True)
    transport.close()
    assert (found.name, found.addresses, found.models) == ("attic", (("127.0.0.1", 8765),), ("tiny",))
    assert (found.free_bytes, found.total_bytes, found.load) == (5_000, 9_000, 0.5)
    assert found.token_wanted and found.signed and found.seconds < 60
    assert AsyncRelay(found).place == "127.0.0.1:8765"
