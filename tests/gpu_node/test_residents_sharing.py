"""Models that want the same room, and sessions beside them: what was brought in stays until whoever asked has it."""

from __future__ import annotations

import asyncio

import pytest

from gpu_node.departures import CutSession
from gpu_node.errors import NodeStopping, NoRoom
from gpu_node.residents import Residents
from tests.gpu_node.residing import ONE, fleet_of, loaded, residents_of, use


async def test_loadings_that_cannot_be_there_together_each_get_their_model_once() -> None:
    fleet = fleet_of(room_for=1)
    async with residents_of(fleet) as residents:
        seen: list[str] = []

        async def load(name: str) -> None:
            host = residents.find(name)
            await residents.load(host)
            assert host.ready, "it was brought in for this one, and leaves for the next one later"
            seen.append(name)

        await asyncio.gather(load("a"), load("b"), load("c"))
        assert sorted(seen) == ["a", "b", "c"]
        assert [fleet.script(name).loads for name in "abc"] == [1, 1, 1]
        assert loaded(residents) == seen[-1:]


async def test_a_model_that_a_connected_session_has_asked_for_stays_before_it_has_it() -> None:
    class Cut:
        owners: tuple[str, ...] = ()

        def cut(self) -> list[CutSession]:
            return [CutSession(owner, 1.0) for owner in self.owners]

        def held(self) -> set[str]:
            return set()

        async def give_up(self, owner: str) -> None:
            self.owners = ()

    async with residents_of(fleet_of(room_for=1)) as residents:
        cut = Cut()
        residents.share_with(cut)
        await residents.start()
        residents.main.owners.add("session 1")
        with pytest.raises(NoRoom):
            await residents.load(residents.find("b"))
        assert loaded(residents) == ["a"]
        cut.owners = ("session 1",)
        await residents.load(residents.find("b"))
        assert loaded(residents) == ["b"]


async def test_buffers_of_sessions_stand_in_the_same_account_and_idle_models_leave_for_them() -> None:
    async with residents_of(fleet_of(room_for=2)) as residents:
        await use(residents, "a")
        await use(residents, "b")
        async with residents.hold("b"):
            assert await residents.reserve("session 1", "", ONE) == "cpu"
            assert loaded(residents) == ["b"], "the busy one stays"
            with pytest.raises(NoRoom, match="buffers of clients hold") as caught:
                await residents.reserve("session 1", "cpu", 1)
            assert (caught.value.free_bytes, caught.value.needed_bytes) == (0, 1)
        told = {(one.owner, one.what, one.state) for one in residents.holdings}
        assert told == {("b", "model", "idle"), ("session 1", "buffers", "live")}
        residents.release("session 1", "cpu", ONE)
        assert residents.accounts[0].free_bytes == ONE


async def test_a_load_ends_cut_sessions_first() -> None:
    residents: Residents

    class Cut:
        def __init__(self) -> None:
            self.gone: list[str] = []

        def cut(self) -> list[CutSession]:
            return [] if self.gone else [CutSession("session 1", 1.0)]

        def held(self) -> set[str]:
            return set()

        async def give_up(self, owner: str) -> None:
            self.gone.append(owner)
            residents.release(owner, "cpu", ONE)

    async with residents_of(fleet_of(room_for=2)) as residents:
        cut = Cut()
        residents.share_with(cut)
        await residents.reserve("session 1", "", ONE)
        await use(residents, "a")
        await use(residents, "b")
        assert cut.gone == ["session 1"] and loaded(residents) == ["a", "b"]
        residents.stop()
        with pytest.raises(NodeStopping):
            await residents.reserve("session 2", "", 1)
