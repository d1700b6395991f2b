"""Who is in memory: loading on demand, leaving in time, making room, and turns where there is room for one only."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gpu_node.durations import FOREVER
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeBusy, NodeStopping, NoRoom, RequestError
from gpu_node.load_wish import LoadWish
from gpu_node.vram import Account
from tests.gpu_node.residing import CACHE, ONE, A, fleet_of, loaded, residents_of, use
from tests.gpu_node.serving import Model, until_true


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_request_loads_the_model_it_names() -> None:
    async with residents_of(fleet_of()) as residents:
        await residents.start()
        await use(residents, "B:latest")
        assert loaded(residents) == ["a", "b"]
        assert residents.main.name == "a"
        (account,) = residents.accounts
        assert account.used_bytes == 2 * ONE
        with pytest.raises(RequestError, match="model 'nothing' not found") as caught:
            residents.find("nothing")
        assert (caught.value.status, caught.value.field) == (404, "model")


async def test_a_near_miss_is_told() -> None:
    async with residents_of(fleet_of(Model("qwen2.5:1.5b"))) as residents:
        with pytest.raises(RequestError, match=r"did you mean qwen2.5:1.5b\?"):
            residents.find("qwen2.5:1b")


async def test_many_that_ask_at_once_share_one_loading() -> None:
    fleet = fleet_of()
    async with residents_of(fleet) as residents:
        await asyncio.gather(residents.start(), *(use(residents, "a") for _ in range(5)))
        assert fleet.script("a").loads == 1


async def test_an_idle_model_leaves_when_its_time_is_over() -> None:
    clock = Clock()
    async with residents_of(fleet_of(clock=clock)) as residents:
        await use(residents, "a")
        clock.now += 299
        await residents.expire(residents.main)
        assert loaded(residents) == ["a"]
        clock.now += 1
        await residents.expire(residents.main)
        assert loaded(residents) == []
        assert residents.accounts[0].used_bytes == 0
        await use(residents, "a")
        assert residents.main.seconds_left == 300


async def test_the_timer_itself_unloads_also_after_a_loading_that_nobody_waited_for() -> None:
    fleet = fleet_of(keep_alive=0.0)
    async with residents_of(fleet) as residents:
        await use(residents, "a")
        await until_true(lambda: not residents.loaded)
        fleet.script("b").load_gate.clear()
        waiting = asyncio.create_task(use(residents, "b"))
        await until_true(lambda: residents.find("b").state == "loading")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        fleet.script("b").load_gate.set()
        await until_true(lambda: fleet.script("b").loads == 1 and not residents.loaded)
        assert [host.name for host in residents.hosts] == ["a"], "its thread is gone with it"


async def test_a_kept_model_stays() -> None:
    clock = Clock()
    async with residents_of(fleet_of(clock=clock, keep_alive=FOREVER)) as residents:
        await residents.start()
        clock.now += 10**9
        await residents.expire(residents.main)
        assert loaded(residents) == ["a"]


async def test_unload_is_at_once_when_idle_and_after_the_last_request_when_not() -> None:
    async with residents_of(fleet_of()) as residents:
        await residents.start()
        assert await residents.unload(residents.main)
        assert loaded(residents) == []
        async with residents.hold("a", 600):
            assert not await residents.unload(residents.main)
            assert loaded(residents) == ["a"]
        await until_true(lambda: not residents.loaded)


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    clock = Clock()
    async with residents_of(fleet_of(room_for=2, clock=clock)) as residents:
        for name in "abac":
            clock.now += 1
            await use(residents, name)
        assert loaded(residents) == ["a", "c"]


async def test_models_that_cannot_be_there_together_take_turns() -> None:
    fleet = fleet_of(room_for=1)
    async with residents_of(fleet) as residents:
        order: list[str] = []

        async def ask(name: str) -> None:
            async with residents.hold(name):
                order.append(name)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(ask(name) for name in "ababab"))
        assert sorted(order) == list("aaabbb")
        assert fleet.script("a").loads + fleet.script("b").loads <= 4, "requests for one model share its turn"


async def test_a_running_request_is_never_unloaded_and_a_later_one_does_not_overtake() -> None:
    fleet = fleet_of(room_for=1)
    async with residents_of(fleet) as residents:
        order: list[str] = []

        async def ask(name: str, mark: str) -> None:
            async with residents.hold(name):
                order.append(mark)

        async with residents.hold("a"):
            second = asyncio.create_task(ask("b", "b"))
            await until_true(lambda: residents.main.leaving)
            third = asyncio.create_task(ask("a", "later a"))
            await asyncio.sleep(0)
            assert loaded(residents) == ["a"] and not order
        await asyncio.gather(second, third)
        assert order == ["b", "later a"]


async def test_loading_on_request_does_not_wait_for_busy_models() -> None:
    async with residents_of(fleet_of(room_for=1)) as residents:
        async with residents.hold("a"):
            host = await residents.wanted("b", residents.usual_wish)
            with pytest.raises(NoRoom, match=r"no room for b: .*a holds .* and is answering 1"):
                await residents.load(host)
            assert residents.main.running == 1
        await residents.load(await residents.wanted("b", residents.usual_wish), 7.0)
        assert loaded(residents) == ["b"]
        assert residents.find("b").seconds_left == pytest.approx(7.0)


async def test_what_can_never_fit_is_refused_and_harms_nobody() -> None:
    async with residents_of(fleet_of(A, Model("huge", parameters=10**6), room_for=2)) as residents:
        await residents.start()
        with pytest.raises(NoRoom, match=r"huge needs 2\.00 MB and cpu has 0\.01 MB to give"):
            await use(residents, "huge")
        assert loaded(residents) == ["a"]


async def test_a_loading_that_runs_out_of_memory_is_tried_again_alone() -> None:
    fleet = fleet_of()
    fleet.script("b").load_errors = [DeviceOutOfMemory("no room")]
    async with residents_of(fleet) as residents:
        await residents.start()
        await use(residents, "b")
        assert loaded(residents) == ["b"]
        fleet.script("c").load_errors = [DeviceOutOfMemory("no room")] * 2
        with pytest.raises(ModelError, match="c does not fit into memory"):
            await use(residents, "c")
        assert residents.accounts[0].used_bytes == 0
        await use(residents, "a")


async def test_a_failed_loading_fails_its_requests_and_is_tried_again_by_the_next() -> None:
    fleet = fleet_of()
    fleet.script("a").load_errors = [ModelError("the disk is gone"), ValueError("what is this")]
    async with residents_of(fleet) as residents:
        for told in ("the disk is gone", "cannot be loaded: what is this"):
            with pytest.raises(ModelError, match=told):
                await use(residents, "a")
            assert told in residents.main.failure
            assert (residents.main.state, residents.accounts[0].used_bytes) == ("failed", 0)
        await use(residents, "a")
        assert (residents.main.state, residents.main.failure) == ("ready", "")


async def test_files_that_cannot_be_had_are_the_models_failure() -> None:
    fleet = fleet_of()
    async with residents_of(fleet) as residents:
        residents.find("b")
        fleet.files["b"].error = ModelError("no such wheel")
        with pytest.raises(ModelError, match="no such wheel"):
            await use(residents, "b")
        assert not residents.find("b").slots.busy


async def test_a_client_that_leaves_while_it_loads_does_not_stop_the_loading() -> None:
    fleet = fleet_of()
    fleet.script("a").load_gate.clear()
    async with residents_of(fleet) as residents:
        leaving, staying = (asyncio.create_task(use(residents, "a")) for _ in range(2))
        await until_true(lambda: residents.main.state == "loading")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        fleet.script("a").load_gate.set()
        await staying
        assert fleet.script("a").loads == 1


async def test_the_queue_is_bounded_also_while_the_model_loads() -> None:
    fleet = fleet_of(max_waiting=1)
    fleet.script("a").load_gate.clear()
    async with residents_of(fleet) as residents:
        tasks = [asyncio.create_task(use(residents, "a")) for _ in range(3)]
        await until_true(lambda: residents.main.slots.inside == 3)
        with pytest.raises(NodeBusy):
            await use(residents, "a")
        fleet.script("a").load_gate.set()
        await asyncio.gather(*tasks)


async def test_another_way_of_loading_replaces_an_idle_model_and_is_refused_while_it_is_used() -> None:
    fleet = fleet_of()
    async with residents_of(fleet) as residents:
        await residents.start()
        wish = replace(residents.usual_wish, dtype="float32", max_running=7)
        async with residents.hold("a"):
            with pytest.raises(RequestError, match="a is in use as it is loaded now") as caught:
                await residents.wanted("a", wish)
        assert caught.value.status == 409
        before = residents.main
        await residents.load(await residents.wanted("a", wish))
        assert residents.main is not before and residents.main.slots.running == 7
        assert residents.main.serves("default") and loaded(residents) == ["a"]
        assert [one.dtype for one in fleet.files["a"].wishes] == ["auto", "float32"]
        same = await residents.wanted("default", wish)
        assert same is residents.main


@pytest.mark.parametrize("fault", ["too large", "broken"])
async def test_a_way_of_loading_that_fails_is_not_kept_for_those_who_come_later(fault: str) -> None:
    fleet = fleet_of()
    async with residents_of(fleet) as residents:
        await residents.start()
        usual = residents.usual_wish
        proven = replace(usual, max_running=7)
        await residents.load(await residents.wanted("a", proven))
        if fault == "broken":
            fleet.script("a").load_errors = [ModelError("broken")]
        wish = replace(usual, kv_bytes=ONE * 1000 if fault == "too large" else CACHE, max_running=9)
        with pytest.raises(NoRoom if fault == "too large" else ModelError):
            await residents.load(await residents.wanted("a", wish))
        await use(residents, "a")
        assert residents.main.wish == proven and residents.main.loaded_once
        with pytest.raises(NoRoom):
            await residents.load(await residents.wanted("b", replace(usual, kv_bytes=ONE * 1000)))
        await use(residents, "b")
        assert loaded(residents) == ["a", "b"]


async def test_hub_names_are_for_those_who_ask_for_a_loading() -> None:
    async with residents_of(fleet_of()) as residents:
        with pytest.raises(RequestError):
            residents.find("organisation/name")
        await residents.load(await residents.wanted("organisation/name", LoadWish(kv_bytes=CACHE)))
        assert loaded(residents) == ["organisation/name"]
        await use(residents, "organisation/name")
        with pytest.raises(RequestError):
            await residents.wanted("nothing", LoadWish())


async def test_each_device_has_an_account_of_its_own() -> None:
    accounts = (Account("cuda", ONE), Account("cpu", ONE))
    async with residents_of(fleet_of(accounts=accounts)) as residents:
        for name, device in (("a", "cuda"), ("b", "cpu")):
            wish = replace(residents.usual_wish, device=device)
            await residents.load(await residents.wanted(name, wish))
        assert loaded(residents) == ["a", "b"]
        assert {one.device: list(one.claims) for one in residents.accounts} == {"cuda": ["a"], "cpu": ["b"]}


async def test_an_engine_that_gave_up_holds_nothing_and_comes_back() -> None:
    fleet = fleet_of(room_for=1)
    async with residents_of(fleet) as residents:
        await residents.start()
        engine: Any = residents.main.engine
        engine._runner, engine.state, engine.error = None, "failed", "the thread died too often"
        assert residents.accounts[0].used_bytes == 0
        assert (residents.main.state, residents.main.failure) == ("failed", "the thread died too often")
        await use(residents, "b")
        await use(residents, "a")
        assert residents.main.state == "ready"


async def test_a_stop_ends_those_who_wait_for_a_model() -> None:
    fleet = fleet_of()
    fleet.script("a").load_gate.clear()
    async with residents_of(fleet) as residents:
        waiting = asyncio.create_task(use(residents, "a"))
        await until_true(lambda: residents.main.state == "loading")
        residents.stop()
        with pytest.raises(NodeStopping):
            await waiting
        with pytest.raises(NodeStopping):
            await use(residents, "b")


async def test_models_that_were_only_looked_at_do_not_pile_up() -> None:
    async with residents_of(fleet_of()) as residents:
        for name in "bcbc":
            residents.find(name)
            await asyncio.sleep(0)
        await until_true(lambda: len(residents.hosts) <= 2)
        await use(residents, "b")
        assert loaded(residents) == ["b"]
