"""The clients and the command against the real gateway (`potluck serve`) over a fleet of fake phones."""

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager

import pytest

from potluck import (
    AnswerCutShort,
    AsyncGateway,
    Gateway,
    GatewayUnreachable,
    InvalidRequest,
    KeyRefused,
    ModelUnknown,
    NoNodes,
    Queued,
    Token,
)
from tests.fakes.phone import FakePhone, Fault, PhoneSettings, fake_fleet
from tests.fakes.ports import free_port
from tests.potluck.cli.terminal import CTRL_C, PATIENCE_SECONDS, Terminal, environment, run

MODEL = "smollm2:135m"


@asynccontextmanager
async def serving(tmp_path, phones, **settings):
    """A gateway over these phones, in a process of its own; its address. It is told to stop in the end, and does."""
    fleet = tmp_path / "phones.json"
    fleet.write_text(
        json.dumps([{"host": phone.host, "port": phone.port, "name": f"phone-{phone.port}"} for phone in phones])
    )
    url = f"http://127.0.0.1:{free_port()}"
    variables = {"POTLUCK_PHONES_FILE": str(fleet), "POTLUCK_EMBEDDED_NODE": "off", "POTLUCK_DRAIN_S": "1", **settings}
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "potluck", "serve", "--port", url.rpartition(":")[2]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env=environment(url, **variables),
        )
    try:
        await until_ready(url, len(phones), process, tmp_path / "log", settings.get("POTLUCK_API_KEYS"))
        yield url
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE_SECONDS) in (0, -signal.SIGTERM)


async def until_ready(url, nodes, process, log, key):
    async with AsyncGateway(url, api_key=key) as gateway, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            assert process.returncode is None, log.read_text()
            try:
                health = await gateway.health()
            except GatewayUnreachable:
                pass
            else:
                if sum(node.serving for node in health.nodes) == nodes:
                    return
            await asyncio.sleep(0.05)


async def in_thread(function, *arguments, **options):
    return await asyncio.to_thread(function, *arguments, **options)


async def test_both_clients_and_the_command_get_the_phones_answer(tmp_path):
    async with fake_fleet(2, PhoneSettings()) as phones, serving(tmp_path, phones) as url:
        async with AsyncGateway(url) as gateway:
            told = [token async for token in gateway.stream("What is rain?", seed=1, temperature=0)]
            answer = await gateway.ask("What is rain?", seed=1, temperature=0)
            assert answer.text == "".join(told)
            assert answer.cached
            again = await gateway.ask("What is rain?", seed=1, temperature=0, cache=False)
            assert (again.text, again.cached) == (answer.text, False)
            assert again.node in {f"phone-{phone.port}" for phone in phones}
            assert again.usage.completion_tokens - len(told) in (0, 1)  # the last token may have no text
            assert again.attempts == 1
            assert await gateway.models() == [MODEL]
            items = await gateway.batch(["one", "two", {"prompt": ""}], seed=2)
            assert [item.error is None for item in items] == [True, True, False]
            assert isinstance(items[2].error, InvalidRequest)
            streamed = [item async for item in gateway.batch(["one", "two", "three"], stream=True, seed=2)]
            assert sorted(item.index for item in streamed) == [0, 1, 2]
            assert {item.index: item.text for item in streamed}[0] == items[0].text
            with pytest.raises(ModelUnknown) as unknown:
                await gateway.ask("hi", model="smollm2:136m")
            assert MODEL in unknown.value.hint
            with pytest.raises(InvalidRequest) as invalid:
                await gateway.ask("hi", temprature=0)  # type: ignore[call-arg]
            assert invalid.value.field == "temprature"
            assert "temperature" in invalid.value.hint

        def blocking():
            with Gateway(url) as gateway:
                stream = gateway.stream("What is rain?", seed=1, temperature=0, cache=False)
                return "".join(stream), stream.answer, gateway.health()

        text, whole, health = await in_thread(blocking)
        assert text == whole.text == answer.text
        assert (health.status, len(health.nodes)) == ("ok", 2)
        assert health.cache.hits == 3  # the question asked again, and two of the batch

        done = await in_thread(run, url, "ask", "What is rain?", "--seed", "1", "-t", "0", "--no-cache", "-v")
        assert (done.returncode, done.stdout.rstrip("\n")) == (0, answer.text.rstrip("\n"))
        assert "tokens/s" in done.stderr
        table = await in_thread(run, url, "status")
        assert table.returncode == 0
        assert table.stdout.count("● ready") == 2
        chat = await in_thread(run, url, "chat", "-v", given="one\ntwo\n")
        assert chat.returncode == 0
        turns = [request.json["messages"] for phone in phones for request in phone.log if request.path == "/api/chat"]
        assert [message["role"] for message in max(turns, key=len)] == ["user", "assistant", "user"]


async def test_leaving_a_stream_stops_the_phone(tmp_path):
    slow = PhoneSettings(tokens_per_second=20, answer_tokens=(400, 400))
    async with FakePhone(slow) as phone, serving(tmp_path, [phone]) as url:
        async with AsyncGateway(url) as gateway:
            async with gateway.stream("Tell me a long story") as stream:
                await anext(stream)
            await phone.idle()
            assert phone.counters.cancelled == 1
        with Terminal(url, "ask", "Tell me another long story") as terminal:
            await phone.until(lambda counters: counters.in_flight == 1, PATIENCE_SECONDS)
            await in_thread(terminal.wait_for, " ")
            terminal.type(CTRL_C)
            assert await in_thread(terminal.end) == 130
        await phone.idle()
        assert phone.counters.cancelled == 2


async def test_places_in_the_queue_are_told(tmp_path):
    slow = PhoneSettings(tokens_per_second=50)
    async with FakePhone(slow) as phone, serving(tmp_path, [phone]) as url, AsyncGateway(url) as gateway:
        async with gateway.stream("one") as first:
            await anext(first)
            second = gateway.stream("two", cache=False, progress=True)
            events = [event async for event in second.events()]
        assert events[0] == Queued(1)
        assert isinstance(events[-1], Token)


async def test_an_answer_that_nobody_can_finish_is_never_taken_for_whole(tmp_path):
    async with FakePhone(PhoneSettings()) as phone, serving(tmp_path, [phone]) as url, AsyncGateway(url) as gateway:
        phone.fail(Fault.cut(after_tokens=3), paths="chat")
        phone.fail(Fault.error(), paths="generate")
        with pytest.raises(AnswerCutShort) as cut:
            await gateway.stream("What is rain?").finish()
        assert cut.value.text
        assert cut.value.nodes
    async with serving(tmp_path, []) as url, AsyncGateway(url) as gateway:
        with pytest.raises(NoNodes) as nobody:
            await gateway.ask("hi")
        assert "potluck phones invite" in nobody.value.message + (nobody.value.hint or "")


async def test_a_key_is_wanted_where_keys_are_set(tmp_path):
    async with FakePhone(PhoneSettings()) as phone, serving(tmp_path, [phone], POTLUCK_API_KEYS="secret-1") as url:
        async with AsyncGateway(url) as stranger:
            with pytest.raises(KeyRefused):
                await stranger.ask("hi")
        async with AsyncGateway(url, api_key="secret-1") as friend:
            assert (await friend.ask("hi")).text
        done = await in_thread(run, url, "ask", "hi", POTLUCK_API_KEY="secret-1")
        assert done.returncode == 0
        refused = await in_thread(run, url, "ask", "hi")
        assert refused.returncode == 1
        assert "POTLUCK_API_KEY" in refused.stderr
