"""The asyncio client of a relay node, against a node that is played."""

import array
import asyncio
import hashlib
import ssl
import time

import pytest

from potluck import (
    AnswerCutShort,
    AsyncRelay,
    InvalidRequest,
    KeyRefused,
    LoadProgress,
    Misuse,
    ModelUnknown,
    NodeFailed,
    NodeUnreachable,
    NoRoom,
    Piece,
    PotluckError,
    QueueFull,
    SessionLost,
    TensorData,
)
from tests.fakes import relay_node
from tests.fakes.relay_node import Refusal, fake_relay_node
from tests.transport.certificates import server_context, trusting_context
from transport.pauses import PausePolicy
from transport.session import SessionSettings
from wire.beacon import Address, Announcement, Probe, pack_beacon, unpack_beacon
from wire.frames import FrameType
from wire.messages_memory import Free, Read, Run
from wire.messages_session import Error, ErrorCode, GoodbyeReason
from wire.messages_work import ChatPrompt, FinishReason, Generate, Load, Logprob, TextPrompt, TokenLogprob, TokenPrompt

QUICK = SessionSettings(name="test", pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01))


def relay_of(node, **options):
    return AsyncRelay((node.place.host, node.place.port), settings=QUICK, **options)


async def test_an_answer_comes_in_pieces_and_as_a_whole():
    async with fake_relay_node() as node, relay_of(node) as relay:
        stream = relay.generate("tiny", "Paris?", temperature=0, max_tokens=9)
        pieces = [piece async for piece in stream]
        assert [piece.ids for piece in pieces] == [(5,), (6, 7), (8,), (9, 10), (11,)]
        assert "".join(map(str, pieces)) == stream.text == stream.answer.text == "Paris is nice!"
        answer = stream.answer
        assert (answer.ids, answer.done_reason) == ((5, 6, 7, 8, 9, 10, 11), "stop")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 7)
        [asked] = node.asked(Generate)
        assert (asked.sampling.temperature, asked.bounds.max_tokens) == (0, 9)
        assert asked.prompt.messages[0].content == "Paris?"


async def test_finish_reads_the_rest():
    async with fake_relay_node(reason=FinishReason.LENGTH) as node, relay_of(node) as relay:
        stream = relay.generate("tiny", "Paris?")
        assert await anext(stream) == Piece("Par", (5,))
        with pytest.raises(PotluckError, match="not come to its end"):
            _ = stream.answer
        assert (await stream.finish()).done_reason == "length"


async def test_prompts_are_what_they_look_like():
    async with fake_relay_node() as node, relay_of(node) as relay:
        for prompt, options in (
            ("hello", {"system": "be short", "context": [1, 2]}),
            ("hello", {"raw": True}),
            ([1, 2, 3], {}),
            ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {}),
        ):
            await relay.generate("tiny", prompt, **options).finish()
        chat, raw, ids, messages = [asked.prompt for asked in node.asked(Generate)]
        assert isinstance(chat, ChatPrompt) and [each.role for each in chat.messages] == ["system", "user"]
        assert chat.context == (1, 2)
        assert raw == TextPrompt("hello")
        assert ids == TokenPrompt((1, 2, 3))
        assert [each.role for each in messages.messages] == ["user", "assistant"]


async def test_logprobs_and_samples_are_kept_apart():
    def answer(request):
        return [
            relay_node.Piece(text, (id,), sample, (TokenLogprob(Logprob(id, -0.5, text), (Logprob(9, -2.0, "x"),)),))
            for sample, text, id in ((0, "a", 1), (1, "b", 2), (0, "c", 3))
        ]

    async with fake_relay_node(answer=answer) as node, relay_of(node) as relay:
        told = await relay.generate("tiny", "?", samples=2, logprobs=1).finish()
        assert told.texts == ("ac", "b") and told.sample_ids == ((1, 3), (2,))
        assert told.reasons == ("stop", "stop")
        assert [choice.id for choice in told.logprobs[0]] == [1, 3]
        assert told.logprobs[1][0].top == ((9, "x", -2.0),)


async def test_a_cut_in_the_middle_is_not_seen():
    async with fake_relay_node() as node, relay_of(node) as relay:
        node.cut_after(3)
        assert (await relay.generate("tiny", "Paris?").finish()).text == "Paris is nice!"
        assert node.accepted == 2


async def test_a_cut_that_cannot_be_mended_keeps_what_was_told():
    settings = SessionSettings(pauses=PausePolicy(patience_seconds=0))
    async with fake_relay_node(gate=asyncio.Semaphore(2)) as node:
        relay = AsyncRelay(str(node.place), settings=settings)
        stream = relay.generate("tiny", "Paris?")
        assert [str(await anext(stream)) for _ in range(2)] == ["Par", "is"]
        await node.stop()
        with pytest.raises(AnswerCutShort) as cut:
            await anext(stream)
        assert cut.value.text == "Paris"
        with pytest.raises(NodeUnreachable):
            await relay.stats()
        await relay.aclose()


@pytest.mark.parametrize("way", ["block", "aclose", "dropped"])
async def test_leaving_early_stops_the_node(way):
    async with fake_relay_node(gate=asyncio.Semaphore(1)) as node, relay_of(node) as relay:
        if way == "dropped":
            async for _ in relay.generate("tiny", "Paris?"):
                break
        else:
            stream = relay.generate("tiny", "Paris?")
            await anext(stream)
            await (stream.__aexit__() if way == "block" else stream.aclose())
        await node.until(lambda: bool(node.cancelled))


async def test_events_tell_what_the_node_does_first():
    progress = (relay_node.RelayScript().progress[0],)
    async with fake_relay_node(progress_of_generate=progress) as node, relay_of(node) as relay:
        events = [event async for event in relay.generate("tiny", "?").events()]
        assert events[0] == LoadProgress("reading", 5, 10)
        assert len(events) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 1, "num_predict": 2}, "two names"),
        ({"format": "yaml"}, "JSON schema"),
        ({"format": "json", "regex": "a"}, "give one"),
        ({"raw": True, "system": "x"}, "system"),
        ({"keep_alive": "5m"}, "seconds"),
        ({"samples": 0}, "samples"),
    ],
)
async def test_options_that_make_no_sense_are_refused_before_anything_is_sent(options, words):
    async with fake_relay_node() as node:
        relay = relay_of(node)
        with pytest.raises(Misuse, match=words):
            relay.generate("tiny", "?", **options)
        await relay.aclose()
        assert node.accepted == 0


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user"}], [{"role": "user", "content": "x", "images": []}], [{"role": "user", "content": 1}], ["x"]],
)
async def test_messages_that_cannot_be_sent_are_refused(messages):
    with pytest.raises(Misuse):
        AsyncRelay("127.0.0.1").generate("tiny", messages)


async def test_every_option_arrives():
    async with fake_relay_node() as node, relay_of(node) as relay:
        options = {
            "temperature": 0.5, "top_k": 1, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.5, "repeat_penalty": 1.5,
            "presence_penalty": 0.5, "frequency_penalty": 0.25, "repeat_last_n": 3, "seed": 7, "logit_bias": {3: 1.5},
            "logprobs": 2, "format": {"type": "string"}, "stop": "END", "max_tokens": 5, "min_tokens": 2, "num_ctx": 64,
            "num_keep": 1, "truncate": False, "shift": False, "ignore_end": True, "samples": 1, "priority": 3,
            "deadline_s": 1.5, "keep_alive": -1, "caller": "ann", "cache_salt": "s",
        }  # fmt: skip
        await relay.generate("tiny", "?", **options).finish()
        [asked] = node.asked(Generate)
        sampling, bounds = asked.sampling, asked.bounds
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty",
                     "frequency_penalty", "repeat_last_n", "seed", "logprobs"):  # fmt: skip
            assert getattr(sampling, name) == options[name], name
        assert (sampling.logit_bias[0].id, sampling.logit_bias[0].bias) == (3, 1.5)
        assert sampling.guide.schema == '{"type": "string"}'
        assert (bounds.max_tokens, bounds.min_tokens, bounds.context_tokens, bounds.keep_tokens) == (5, 2, 64, 1)
        assert (bounds.truncate, bounds.shift, bounds.ignore_end) == (False, False, True)
        assert (asked.stop, asked.priority, asked.deadline_ms) == (("END",), 3, 1500)
        assert (asked.keep_alive_seconds, asked.caller, asked.cache_salt) == (float("inf"), "ann", "s")


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
        assert 0 < await relay.ping() < 5


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
            await relay.run("tiny", [1], output="loss")


async def test_a_run_is_asked_again_after_a_cut():
    async with fake_relay_node(frame_bytes=64) as node, relay_of(node) as relay:
        node.cut_after(2)
        assert (await relay.run("tiny", list(range(9)))).shape == (9, 16)
        assert len(node.asked(Run)) == 2


@pytest.mark.parametrize("frames", [None, 0, 2, 5])
async def test_a_model_is_pushed_once_whatever_is_cut(tmp_path, frames):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"not this")
    contents = {"config.json": b"{}", "sub/weights": bytes(range(256)) * (10 << 10), "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    async with fake_relay_node() as node, relay_of(node) as relay:
        told = []
        await relay.open()
        if frames is not None:
            node.cut_after(frames)
        total = await relay.push("mine", tmp_path, on_progress=told.append)
        [session] = node.sessions.values()
        assert {name: bytes(data) for name, data in session.pushed["mine"].items()} == contents
        assert total == sum(map(len, contents.values()))
        assert (told[-1].phase, told[-1].done) == ("sending", total)
        assert node.accepted == (1 if frames is None else 2)


async def test_what_is_no_model_is_not_pushed(tmp_path):
    async with fake_relay_node() as node, relay_of(node) as relay:
        with pytest.raises(Misuse, match="no files"):
            await relay.push("mine", tmp_path)
        (tmp_path / "con").write_bytes(b"x")
        with pytest.raises(Misuse, match="cannot be pushed"):
            await relay.push("mine", tmp_path)


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
        node.script.refusals.append(Refusal(FrameType.LOAD, Error(code, "no", 1500, details)))
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


async def test_reading_a_buffer_asks_for_it_in_pieces():
    async with fake_relay_node() as node, relay_of(node) as relay:
        tensor = await relay.tensor(shape=(33 << 20,), dtype="uint8")
        await tensor.get()
        assert [read.size >> 20 for read in node.asked(Read)] == [16, 16, 1]


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
    assert found.token_wanted and found.signed and found.seconds < 10
    assert AsyncRelay(found).place == "127.0.0.1:8765"
