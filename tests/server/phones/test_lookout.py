"""Host names that lead to a phone: what name servers say, and that one that hangs is not waited for."""

from __future__ import annotations

import asyncio

from server.phones.lookout import MOST_NAMES, NAMES_SECONDS, Lookout
from tests.fakes.clock_loop import on_clock_loop
from tests.server.phones.stand import FOUND, HOST


def lookout(answers: dict[str, list[str]], asked: list[str] | None = None) -> Lookout:
    async def look(host: str, port: int):
        return FOUND

    async def resolve(name: str) -> list[str]:
        if asked is not None:
            asked.append(name)
        if name == "hangs.lan":
            await asyncio.Event().wait()
        if name not in answers:
            raise OSError("no such name")
        return answers[name]

    return Lookout(look, resolve, lambda: 0.0)


@on_clock_loop
async def test_names_that_lead_to_the_phone() -> None:
    looking = lookout({"a.lan": ["fd00::1", HOST], "b.lan": ["192.168.1.21"], "c.lan": []})
    assert await looking.names_of(HOST, {"a.lan", "b.lan", "c.lan", "gone.lan"}) == {"a.lan"}
    assert await looking.names_of(HOST, ()) == frozenset()


@on_clock_loop
async def test_a_name_server_that_hangs_costs_two_seconds_and_its_own_name() -> None:
    loop = asyncio.get_running_loop()
    found = await lookout({"a.lan": [HOST]}).names_of(HOST, {"hangs.lan", "a.lan"})
    assert found == {"a.lan"} and loop.time() == NAMES_SECONDS


@on_clock_loop
async def test_questions_are_bounded_and_end_with_who_asked() -> None:
    asked: list[str] = []
    await lookout({}, asked).names_of(HOST, [f"{number}.lan" for number in range(1000)])
    assert len(asked) == MOST_NAMES
    asking = asyncio.create_task(lookout({}).names_of(HOST, {"hangs.lan"}))
    await asyncio.sleep(1.0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1
