"""Gets to know the phones that are connected: a task for each connection asks who it is, then whether it serves.

Nothing waits for a phone that does not answer. A connection's task ends with the connection; what was learned is
forgotten with it. Must not know forwards or the fleet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from server.adb.server_link import ServerLink
from server.adb.states import ADDRESSES, QUESTION, READY, Facts, Transport, is_whole, parse_addresses, parse_facts
from server.clock import Clock
from server.errors import AdbError
from server.nodes import DEFAULT_OLLAMA_PORT

ASK_SECONDS = 1.0  # between looks whether a phone serves
PATIENT_ASK_SECONDS = 3.0  # of one that did not for a while: somebody's own phone on the cable
ASKS_IN_A_HURRY = 30
ADDRESS_SECONDS = 15.0  # between questions for its addresses: a network is joined and left
MOST_HALVES = 3  # answers to who it is that lack something; then it has nothing more to say

Connection = tuple[str, int]  # a transport's key
Acquaintance = asyncio.Task[None]


class Acquaintances:
    """`meet` those that are here now; `news` is called whenever something was learned."""

    def __init__(self, link: ServerLink, clock: Clock, news: Callable[[], None]) -> None:
        self._link, self._clock, self._news = link, clock, news
        self._tasks: dict[Connection, Acquaintance] = {}
        self.facts: dict[Connection, Facts] = {}
        self.serving: dict[Connection, str] = {}  # and the version of its Ollama

    def meet(self, transports: tuple[Transport, ...]) -> list[Connection]:
        """These are all that are connected: get to know who is new, forget who left; those are the result."""
        here = {transport.key: transport for transport in transports if transport.state == READY}
        left = [key for key in self._tasks if key not in here]
        for key in left:
            self._tasks.pop(key).cancel()
        self.facts = {key: facts for key, facts in self.facts.items() if key in here}
        self.serving = {key: version for key, version in self.serving.items() if key in here}
        for key, transport in here.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._get_to_know(transport), name=f"adb {transport.serial}")
        return left

    def of(self, transport: Transport) -> Acquaintance | None:
        """Another one for each connection, also where adb tells no numbers."""
        return self._tasks.get(transport.key)

    async def part(self) -> None:
        """From all, now."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self.facts, self.serving = {}, {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _get_to_know(self, transport: Transport) -> None:
        self.facts[transport.key] = await self._ask_facts(transport)
        self._news()
        self.serving[transport.key] = await self._await_service(transport)
        self._news()
        while True:
            await self._clock.sleep(ADDRESS_SECONDS)
            await self._ask_addresses(transport)

    async def _ask_facts(self, transport: Transport) -> Facts:
        halves = 0
        while True:
            said = ""
            with suppress(AdbError):  # also a server that has gone: who follows it knows, and parts from all
                said = await self._link.shell(transport, QUESTION)
            halves += bool(said)
            if is_whole(said) or halves == MOST_HALVES:
                return parse_facts(said)
            await self._clock.sleep(ASK_SECONDS)

    async def _ask_addresses(self, transport: Transport) -> None:
        said = ""
        with suppress(AdbError):
            said = await self._link.shell(transport, ADDRESSES)
        known = self.facts[transport.key]
        if said and known.addresses != parse_addresses(said):
            self.facts[transport.key] = replace(known, addresses=parse_addresses(said))
            self._news()

    async def _await_service(self, transport: Transport) -> str:
        """Its Ollama's version, once there is one."""
        asked = 0
        while True:
            with suppress(AdbError):
                version = await self._link.serves(transport, DEFAULT_OLLAMA_PORT)
                if version is not None:
                    return version
            asked += 1
            await self._clock.sleep(ASK_SECONDS if asked < ASKS_IN_A_HURRY else PATIENT_ASK_SECONDS)
