"""Answers as they are told, and what is asked for them, by the asyncio client against a node that is played."""

import asyncio

import pytest

from potluck import (
    AnswerCutShort,
    AsyncRelay,
    LoadProgress,
    Misuse,
    NodeUnreachable,
    Piece,
    PotluckError,
)
from tests.fakes import relay_node
from tests.fakes.relay_node import fake_relay_node
from tests.potluck.played import relay_of
from transport.pauses import PausePolicy
from transport.session import SessionSettings
from wire.messages_work import ChatPrompt, FinishReason, Generate, Logprob, TextPrompt, TokenLogprob, TokenPrompt


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
