"""LOAD and UNLOAD: a session's hold on a model, and what a client learns of it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.durations import FOREVER
from gpu_node.errors import RequestError
from gpu_node.load_wish import LoadWish
from gpu_node.relay.load_options import OPTIONS, read_options
from gpu_node.relay.loads import told_parameters
from gpu_node.relay.models import progress_of
from tests.gpu_node.relay.relayed import Alarm, answer, failure, generate, scripted, until_true
from tests.gpu_node.serving import DESCRIPTION, NAME, Fleet, Model
from transport.errors import Refused
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Done, Generate, Load, Loaded, Phase, Progress, Unload

OTHER = "other:1b"
FLEET = (Model(NAME), Model(OTHER))


async def test_a_loaded_model_stays_until_it_is_given_back() -> None:
    async with scripted(Fleet(models=FLEET, keep_alive=0)) as (here, fleet):
        link = await here.connect()
        loaded = await link.ask(Load(OTHER))
        assert isinstance(loaded, Loaded) and loaded.model == OTHER and loaded.context_tokens == 4096
        facts = dict(loaded.facts)
        assert (facts["vocabulary"], facts["hidden_size"], facts["dtype"]) == (0x110000, 2, "float32")
        assert facts["parameters"] == 500 and facts["device"] == "cpu" and facts["slots"] == 2
        host = here.residents.find(OTHER)
        assert loaded.device_bytes == host.held.total_bytes
        await answer(link, replace(generate(), model=OTHER))
        assert host.ready and host.seconds_left == FOREVER
        assert here.session(link).models == {OTHER}
        ack = await link.ask(Unload(OTHER))
        assert isinstance(ack, Ack) and ack.amount == loaded.device_bytes
        assert not host.ready and fleet.script(OTHER).unloads == 1 and not here.session(link).models
        assert isinstance(await link.ask(Unload(OTHER)), Ack)  # the second time is no fault


async def test_a_hub_id_is_fetched_for_a_load_and_for_nothing_else() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        for message in (replace(generate(), model="lab/model"), Unload("lab/model")):
            error = await failure(link, message)
            assert isinstance(error, Refused) and error.code is ErrorCode.MODEL_NOT_FOUND
        loaded = await link.ask(Load("lab/model"))
        assert isinstance(loaded, Loaded) and loaded.model == "lab/model"
        assert (await answer(link, replace(generate(), model="lab/model"))).done is not None


@pytest.mark.parametrize("asks", [generate(), Load(NAME)])
async def test_who_comes_while_another_loads_it_anew_gets_it_as_it_was(asks: Generate | Load) -> None:
    async with scripted() as (here, fleet):
        first, second = await here.connect(), await here.connect()
        script = fleet.script(NAME)
        script.unload_gate.clear()
        anew = asyncio.create_task(failure(first, Load(NAME, (("max_running", 1),))))
        await until_true(lambda: script.unloads == 1)
        stream = await second.open(asks)
        await second.ping()
        script.unload_gate.set()
        error = await anew
        assert isinstance(error, Refused) and error.details["status"] == 409
        while not isinstance(await stream.message(), Done | Loaded):
            pass
        assert here.host.ready and here.host.slots.running == 2


async def test_it_stays_while_another_session_wants_it() -> None:
    async with scripted(Fleet(models=FLEET, keep_alive=0)) as (here, _):
        first, second = await here.connect(), await here.connect()
        await first.ask(Load(OTHER))
        await second.ask(Load(OTHER))
        host = here.residents.find(OTHER)
        ack = await first.ask(Unload(OTHER))
        assert isinstance(ack, Ack) and ack.amount == 0 and host.ready
        await second.close()
        await until_true(lambda: not host.ready)


@pytest.mark.parametrize("keep_alive", [None, 50.0, math.inf])
async def test_how_long_it_stays_when_the_session_has_ended(keep_alive: float | None) -> None:
    async with scripted(Fleet(models=FLEET)) as (here, _):
        link = await here.connect()
        options = () if keep_alive is None else (("keep_alive_seconds", keep_alive),)
        await link.ask(Load(OTHER, options))
        host = here.residents.find(OTHER)
        await link.close()
        if keep_alive is None:
            await until_true(lambda: not host.ready)
        else:
            await until_true(lambda: not host.owners and host.seconds_left == keep_alive)
            assert host.ready


async def test_what_the_node_keeps_anyway_is_not_sent_away() -> None:
    async with scripted(Fleet(keep_alive=FOREVER)) as (here, _):
        link = await here.connect()
        await link.ask(Load(NAME))
        ack = await link.ask(Unload(NAME))
        assert isinstance(ack, Ack) and ack.amount == 0 and here.host.ready


async def test_a_cut_session_keeps_its_hold_for_its_grace() -> None:
    alarm = Alarm()
    async with scripted(Fleet(models=FLEET), times=alarm.times) as (here, _):
        link = await here.connect()
        await link.ask(Load(OTHER))
        host = here.residents.find(OTHER)
        await here.cut(link)
        await alarm.advance(29)
        assert host.ready and host.owners == {"session 1"}
        await alarm.advance(2)
        await until_true(lambda: not host.ready and not host.owners)


async def test_loading_tells_how_far_it_is() -> None:
    async with scripted(Fleet(models=FLEET)) as (here, fleet):
        fleet.script(OTHER).load_gate.clear()
        link = await here.connect()
        stream = await link.open(Load(OTHER))
        first = await stream.message()
        assert isinstance(first, Progress)
        fleet.script(OTHER).load_gate.set()
        while isinstance(message := await stream.message(), Progress):
            pass
        assert isinstance(message, Loaded)


async def test_a_loading_that_is_cancelled_or_fails_leaves_no_hold() -> None:
    async with scripted(Fleet(models=FLEET)) as (here, fleet):
        script = fleet.script(OTHER)
        script.load_gate.clear()
        link = await here.connect()
        stream = await link.open(Load(OTHER))
        await stream.message()
        stream.cancel()
        await stream.wait_over()
        await until_true(lambda: not here.session(link).tasks)
        script.load_gate.set()
        await until_true(lambda: here.residents.find(OTHER).ready)
        assert not here.residents.find(OTHER).owners and not here.session(link).models
        await here.residents.unload(here.residents.find(OTHER))
        script.load_errors.append(RuntimeError("broken"))
        error = await failure(link, Load(OTHER))
        assert isinstance(error, Refused) and error.code is ErrorCode.MODEL_FAILED
        assert not here.session(link).models
        assert isinstance(await link.ask(Load(OTHER)), Loaded)


async def test_loading_in_another_way() -> None:
    async with scripted(Fleet(models=FLEET)) as (here, fleet):
        first, second = await here.connect(), await here.connect()
        await first.ask(Load(OTHER))
        await first.ask(Load(OTHER, (("max_running", 3), ("context_tokens", 100))))  # its own hold is no obstacle
        host = here.residents.find(OTHER)
        assert (host.wish.max_running, host.wish.context) == (3, 100) and host.ready
        assert fleet.script(OTHER).loads == 2
        error = await failure(second, Load(OTHER, (("max_running", 5),)))
        assert isinstance(error, Refused) and error.code is ErrorCode.BAD_REQUEST and "in use" in error.text
        assert here.residents.find(OTHER) is host and host.owners == {"session 1"}
        await second.ask(Load(OTHER))
        error = await failure(first, Load(OTHER, (("max_running", 5),)))
        assert isinstance(error, Refused) and host.owners == {"session 1", "session 2"}
        assert here.session(first).models == {OTHER}


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (Load("nobody"), ErrorCode.MODEL_NOT_FOUND, "model"),
        (Unload("nobody"), ErrorCode.MODEL_NOT_FOUND, "model"),
        (Load(NAME, priority=1), ErrorCode.UNSUPPORTED, "priority"),
        (Load(NAME, (("max_runing", 1),)), ErrorCode.BAD_REQUEST, "max_runing"),
    ],
)
async def test_what_cannot_be_had_is_refused(message: Load | Unload, code: ErrorCode, field: str) -> None:
    async with scripted() as (here, _):
        error = await failure(await here.connect(), message)
        assert isinstance(error, Refused) and (error.code, error.details["field"]) == (code, field)


def test_options_are_read_by_name() -> None:
    given = (
        ("context_tokens", 100), ("device", "cpu"), ("dtype", "float32"), ("weights", "int8"), ("kernels", "torch"),
        ("threads", 2), ("block_tokens", 32), ("kv_bytes", "2MB"), ("max_running", 3.0), ("step_tokens", 64),
        ("mixed_step_tokens", 8), ("speculation", "off"), ("keep_alive_seconds", 5),
    )  # fmt: skip
    options = read_options(given, has_gpu=False)
    wish = options.wish(LoadWish(kv_blocks=7))
    assert wish == LoadWish("cpu", "float32", "int8", "torch", 2, 100, 32, 2_000_000, 0, 3, 64, 8, "off")
    assert options.keep_alive_seconds == 5.0 and options.hold
    assert read_options((("hold", False),), False).hold is False
    assert read_options((), False).wish(LoadWish()) is None
    assert read_options((("kv_blocks", 9),), True).wish(LoadWish(kv_bytes=5)) == LoadWish(kv_blocks=9)


def test_every_way_of_loading_can_be_asked_for() -> None:
    names = {"context_tokens" if name == "context" else name for name in LoadWish.__slots__}
    assert names == set(OPTIONS) - {"keep_alive_seconds", "hold"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "cuda"), ("device", "tpu"), ("threads", -1), ("threads", True), ("threads", 1.5),
        ("threads", "two"), ("block_tokens", 17), ("block_tokens", True), ("kv_bytes", "much"), ("kv_bytes", -1),
        ("kv_bytes", 1.5), ("max_running", 0), ("keep_alive_seconds", -1), ("keep_alive_seconds", "1h"),
        ("keep_alive_seconds", True), ("hold", 1), ("unknown", 1), ("context_tokens", math.inf),
        ("context_tokens", (1,)),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        read_options(((name, value),), has_gpu=False)  # type: ignore[arg-type]
    assert caught.value.field == name
    with pytest.raises(RequestError, match="not both"):
        read_options((("kv_bytes", 1), ("kv_blocks", 1)), has_gpu=True)


def test_what_a_models_maker_wants_can_travel() -> None:
    described = replace(DESCRIPTION, parameters={"temperature": 0.2, "stop": ["<end>"], "odd": {"a": 1}, "no": None})
    assert told_parameters(described) == (("temperature", 0.2), ("stop", ("<end>",)))


async def test_progress_says_what_is_done() -> None:
    residents = Fleet().residents()
    host = residents.main
    assert progress_of(None) == Progress(Phase.WAITING) == progress_of(host)
    host.activity = "fetching"
    assert progress_of(host) == Progress(Phase.FETCHING, 0, 0, "fetching")
    host.activity, host.read_bytes, host.total_bytes = "loading", 3, 9
    assert progress_of(host) == Progress(Phase.READING, 3, 9, "loading")
    host.read_bytes = 9
    assert progress_of(host).phase is Phase.PREPARING
    await residents.close()


async def test_options_and_facts_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol-messages.md").read_text()
    async with scripted() as (here, _):
        loaded = await (await here.connect()).ask(Load(NAME))
        assert isinstance(loaded, Loaded)
        facts = {name for name, _ in loaded.facts} | {"layers"}
        for name in {*OPTIONS, *facts}:
            assert f"`{name}`" in page, name
