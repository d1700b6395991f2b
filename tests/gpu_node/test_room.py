"""Room for models and buffers: nothing goes beyond the budget, whatever order they come, go and are cut in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpu_node.departures import CutSession, Need
from gpu_node.errors import NoRoom, RequestError
from gpu_node.room import Room
from gpu_node.vram import POOL, Account, Claim

BUDGET = 100


@dataclass(eq=False)
class Host:
    """What a room sees of a loaded model."""

    name: str
    held: Claim
    last_used: float = 0.0
    kept: bool = False
    running: int = 0
    leaving: bool = False
    owners: set[str] = field(default_factory=set)

    @property
    def idle(self) -> bool:
        return not self.running


@dataclass
class House:
    """A room, the models in it and the sessions beside it."""

    accounts: list[Account] = field(default_factory=lambda: [Account("cpu", BUDGET)])
    hosts: dict[str, Host] = field(default_factory=dict)
    cut_at: dict[str, float] = field(default_factory=dict)
    held_models: set[str] = field(default_factory=set)
    models_of: dict[str, frozenset[str]] = field(default_factory=dict)  # that cut sessions hold
    stubborn: set[str] = field(default_factory=set)  # keep their buffers a while after they were ended
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.room = Room(self.accounts, lambda: list(self.hosts.values()), self.leave)
        self.room.sessions = self

    async def leave(self, host: Any) -> None:
        await asyncio.sleep(0)
        del self.hosts[host.name]
        self.room.release(host.name)

    def cut(self) -> list[CutSession]:
        return [
            CutSession(owner, since, self.models_of.get(owner, frozenset())) for owner, since in self.cut_at.items()
        ]

    def held(self) -> set[str]:
        return self.held_models

    async def give_up(self, owner: str) -> None:
        await asyncio.sleep(0)
        self.ended.append(owner)
        if owner not in self.stubborn:
            del self.cut_at[owner]
            self.empty(owner)

    def empty(self, owner: str) -> None:
        for account in self.room.accounts:
            if owner in account.buffers:
                self.room.take_back(owner, account.device, account.buffers[owner])

    async def load(self, name: str, size: int, patient: bool = False, **more: Any) -> None:
        async with self.room.moving:
            await self.room.make(Need(name, size), "cpu", patient)
            self.room.claim(name, "cpu", Claim(size, 0))
            self.hosts[name] = Host(name, Claim(size, 0), **more)

    @property
    def used(self) -> int:
        return sum(account.used_bytes for account in self.room.accounts)


class Reference:
    """The rule once more, step by step and without any cleverness."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[int, float, bool, bool]] = {}  # size, last used, kept, busy
        self.buffers: dict[str, int] = {}
        self.cut: list[str] = []  # the longest cut one first
        self.held: set[str] = set()

    def free(self) -> int:
        return BUDGET - sum(one[0] for one in self.models.values()) - sum(self.buffers.values())

    def make(self, size: int, for_model: bool) -> bool:
        """False, and nothing changed, when there is no room."""
        models, buffers, cut = dict(self.models), dict(self.buffers), list(self.cut)
        while self.free() < size:
            if not self.one_leaves(for_model):
                self.models, self.buffers, self.cut = models, buffers, cut
                return False
        return True

    def one_leaves(self, for_model: bool) -> bool:
        for owner in self.cut:
            if self.buffers.get(owner):
                del self.buffers[owner]
                self.cut.remove(owner)
                return True
        rest = [(kept, used, name) for name, (_, used, kept, busy) in self.models.items()
                if not busy and name not in self.held and (for_model or not kept)]  # fmt: skip
        if not rest:
            return False
        del self.models[min(rest)[2]]
        return True


SIZES = st.integers(1, 60)


class Comings(RuleBasedStateMachine):
    """Models and sessions come, go, are used and cut; the room and the reference always hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.house, self.reference = House(), Reference()
        self.now, self.names = 0, 0

    def teardown(self) -> None:
        self.loop.close()

    @rule(size=SIZES, kept=st.booleans(), busy=st.booleans())
    def load(self, size: int, kept: bool, busy: bool) -> None:
        self.now, self.names = self.now + 1, self.names + 1
        name = f"model {self.names}"
        if self.reference.make(size, True):
            self.loop.run(self.house.load(name, size, last_used=self.now, kept=kept, running=int(busy)))
            self.reference.models[name] = (size, self.now, kept, busy)
        else:
            with pytest.raises(NoRoom) as caught:
                self.loop.run(self.house.load(name, size))
            assert caught.value.needed_bytes == size
            assert caught.value.free_bytes == self.reference.free()

    @rule(owner=st.sampled_from("ABC"), size=SIZES)
    def reserve(self, owner: str, size: int) -> None:
        if owner in self.reference.cut:
            self.reference.cut.remove(owner)
            del self.house.cut_at[owner]
        if self.reference.make(size, False):
            assert self.loop.run(self.house.room.reserve(owner, "", size)) == "cpu"
            self.reference.buffers[owner] = self.reference.buffers.get(owner, 0) + size
        else:
            with pytest.raises(NoRoom):
                self.loop.run(self.house.room.reserve(owner, "cpu", size))

    @rule(owner=st.sampled_from("ABC"), share=st.floats(0, 1))
    def give_back(self, owner: str, share: float) -> None:
        held = self.reference.buffers.get(owner, 0)
        size = int(held * share)
        if size:
            self.house.room.take_back(owner, "cpu", size)
            self.reference.buffers[owner] = held - size
            if held == size:
                del self.reference.buffers[owner]

    @rule(owner=st.sampled_from("ABC"))
    def connection_is_cut(self, owner: str) -> None:
        self.now += 1
        if owner not in self.reference.cut:
            self.reference.cut.append(owner)
            self.house.cut_at[owner] = self.now

    @rule(pick=st.integers(0, 9), what=st.sampled_from(["idle", "held", "let go", "unload"]))
    def something_happens_to_a_model(self, pick: int, what: str) -> None:
        if not self.house.hosts:
            return
        name = sorted(self.house.hosts)[pick % len(self.house.hosts)]
        size, used, kept, _ = self.reference.models[name]
        if what == "idle":
            self.house.hosts[name].running = 0
            self.reference.models[name] = (size, used, kept, False)
        elif what == "unload":
            self.loop.run(self.house.leave(self.house.hosts[name]))
            del self.reference.models[name]
        else:
            change = set.add if what == "held" else set.discard
            change(self.house.held_models, name)
            change(self.reference.held, name)

    @invariant()
    def both_hold_the_same(self) -> None:
        (account,) = self.house.room.accounts
        assert {name: claim.total_bytes for name, claim in account.claims.items()} == {
            name: one[0] for name, one in self.reference.models.items()
        }
        assert dict(account.buffers) == self.reference.buffers
        assert set(self.house.cut_at) == set(self.reference.cut)
        assert self.house.used <= BUDGET


# Without busy models a load waits for nobody, and so the machine never blocks: `load` is never patient.
Comings.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestComings = Comings.TestCase


async def test_buffers_do_not_take_what_somebody_leaves_for_a_model() -> None:
    house = House()
    await house.load("old", 80, running=1)
    loading = asyncio.create_task(house.load("new", 90, patient=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert house.hosts["old"].leaving
    assert await house.room.reserve("session 1", "", 10) == "cpu", "beside the new one there is so much"
    waiting = asyncio.create_task(house.room.reserve("session 2", "", 1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done() and not loading.done()
    house.hosts["old"].running = 0
    house.room.idle.set()
    await loading
    assert house.used == BUDGET and set(house.hosts) == {"new"}
    await waiting  # the new model is idle and nobody holds it
    assert dict(house.room.accounts[0].buffers) == {"session 1": 10, "session 2": 1}


async def test_a_reservation_that_is_given_up_takes_nothing() -> None:
    house = House()
    async with house.room.moving:
        await house.room.reserve("session 1", "", 100)
        waiting = asyncio.create_task(house.room.reserve("session 2", "", 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert dict(house.room.accounts[0].buffers) == {"session 1": 100}


async def test_a_session_that_does_not_let_go_is_asked_once() -> None:
    house = House(stubborn={"session 1"})
    await house.room.reserve("session 1", "", 60)
    await house.room.reserve("session 2", "", 40)
    house.cut_at = {"session 1": 1.0, "session 2": 2.0}
    await house.room.reserve("session 3", "", 30)
    assert house.ended == ["session 1", "session 2"] and house.used == 90
    with pytest.raises(NoRoom):
        await house.room.reserve("session 3", "", 11)


async def test_devices_are_known_by_their_kind_and_chosen_by_their_room() -> None:
    house = House([Account("cuda", 50), Account("cpu", 100)])
    assert await house.room.reserve("session 1", "cuda:0", 30) == "cuda"
    assert await house.room.reserve("session 1", "", 30) == "cpu", "where there is room"
    assert await house.room.reserve("session 1", "", 20) == "cuda"
    with pytest.raises(RequestError, match="no device tpu on this node, but cuda, cpu") as caught:
        await house.room.reserve("session 1", "tpu", 1)
    assert caught.value.field == "device"
    with pytest.raises(NoRoom, match="cuda has"):
        await house.room.reserve("session 1", "", 101)


async def test_when_an_estimate_was_too_small_all_leave_who_may() -> None:
    house = House()
    await house.load("a", 10)
    await house.load("busy", 10, running=1)
    await house.load("held", 10)
    house.held_models.add("held")
    await house.room.reserve("session 1", "", 10)
    await house.room.reserve("session 2", "", 10)
    house.cut_at["session 1"] = 1.0
    assert await house.room.empty("cpu", but="new")
    assert set(house.hosts) == {"busy", "held"} and house.ended == ["session 1"]
    assert not await house.room.empty("cpu", but="new")


async def test_the_models_of_a_session_that_was_ended_leave_before_others() -> None:
    house = House(models_of={"session 1": frozenset({"its own", "another's too"})})
    await house.load("older", 30, last_used=1.0)
    await house.load("its own", 30, last_used=2.0)
    await house.load("another's too", 10, last_used=0.0)
    house.held_models.add("another's too")
    await house.room.reserve("session 1", "", 20)
    house.cut_at["session 1"] = 1.0
    await house.load("new", 50)
    assert set(house.hosts) == {"older", "another's too", "new"} and house.ended == ["session 1"]


async def test_models_lie_in_the_pool_and_buffers_beside_it() -> None:
    house = House(accounts=[Account(POOL, 60), Account("cpu", 50)])
    assert [house.room.device_of(told) for told in ("cpu:0, cpu:1", "cuda", "cpu")] == [POOL] * 3
    assert await house.room.reserve("session a", "", 30) == "cpu"
    assert await house.room.reserve("session a", "cpu:0", 5) == "cpu"
    with pytest.raises(RequestError, match="there is no device cuda on this node, but cpu"):
        await house.room.reserve("session a", "cuda", 5)
    with pytest.raises(NoRoom):
        await house.room.reserve("session b", "", 20)
    assert house.room.account(POOL).buffers == {}


async def test_the_pool_has_what_its_devices_are_by_now() -> None:
    budget = 60
    room = Room([Account(POOL, 0)], lambda: [], House().leave, sized=lambda one: replace(one, budget_bytes=budget))
    assert room.account(POOL).free_bytes == 60
    await room.make(Need("m", 60), POOL)
    budget = 40
    with pytest.raises(NoRoom, match=r"m needs .* and the devices have"):
        await room.make(Need("m", 60), POOL)
