from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from server.backends import resolver
from server.backends.resolver import Resolver, is_address, system_lookup


class Names:
    """A name server: answers, fails, or hangs until it is released."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.release = threading.Event()

    def __call__(self, host: str) -> list[str]:
        self.asked[host] += 1
        if host.startswith("hang"):
            self.release.wait(60)
        if host.startswith("bad"):
            raise OSError("no such name")
        if host.startswith("odd"):
            raise UnicodeError("label too long")
        return ["10.0.0.1", "10.0.0.2"]


async def test_addresses_are_taken_as_they_are():
    names = Names()
    for host in ("10.0.0.1", "::1", "fe80::1%wlan0"):
        assert await Resolver(names).resolve(host) == [host]
    assert not names.asked
    assert not is_address("phone.local")


async def test_an_answer_is_kept_for_a_while_and_then_asked_for_anew():
    names = Names()
    found = Resolver(names)
    assert await found.resolve("phone") == ["10.0.0.1", "10.0.0.2"]
    await found.resolve("phone")
    assert names.asked["phone"] == 1
    found._kept["phone"] = (asyncio.get_running_loop().time() - 1, ["10.9.9.9"])
    assert await found.resolve("phone") == ["10.0.0.1", "10.0.0.2"]


async def test_who_asks_at_once_shares_one_look_up():
    names = Names()
    found = Resolver(names)
    await asyncio.gather(*(found.resolve("phone") for _ in range(10)))
    assert names.asked["phone"] == 1


@pytest.mark.parametrize("host", ["bad", "odd"])
async def test_a_failure_is_an_error_and_is_not_kept(host: str):
    names = Names()
    found = Resolver(names)
    for _ in range(2):
        with pytest.raises(OSError):
            await found.resolve(host)
    assert names.asked[host] == 2


async def test_names_that_hang_stall_nobody_else():
    names = Names()
    found = Resolver(names)
    stuck = [asyncio.create_task(found.resolve(f"hang{number}")) for number in range(50)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(found.resolve("phone"), 60) == ["10.0.0.1", "10.0.0.2"]
    stuck[0].cancel()  # one that gives up does not take the others' look-up with it
    names.release.set()
    results = await asyncio.gather(*stuck, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError) and results[1] == ["10.0.0.1", "10.0.0.2"]


async def test_look_ups_at_once_are_bounded():
    names = Names()
    found = Resolver(names)
    stuck = [asyncio.create_task(found.resolve(f"hang{number}")) for number in range(resolver.MAX_LOOKUPS)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="looked up already"):
        await found.resolve("phone")
    names.release.set()
    await asyncio.gather(*stuck)


async def test_a_failure_that_nobody_waits_for_any_more_is_quiet():
    names = Names()
    found = Resolver(names)
    task = asyncio.create_task(found.resolve("bad"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    while found._running:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_the_systems_resolver_knows_this_machine():
    assert set(system_lookup("localhost")) & {"127.0.0.1", "::1"}
