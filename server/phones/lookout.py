"""Looks at phones before they are believed: does an Ollama answer where the phone's own packets come from? And do
the owner's host names lead there?

Bounded: some at once, some a minute for each address. Must not know invitations, files or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from server.errors import NodeError, NodeStalled, NodeUnreachable, PhoneUnreachable
from server.nodes import ProbeReport
from server.phones.attempts import Attempts, source_of
from server.phones.registration import plain

Resolve = Callable[[str], Awaitable[list[str]]]  # a host name's addresses; raises OSError
Look = Callable[[str, int], Awaitable[ProbeReport]]  # asks /api/version and /api/tags there; raises NodeError

LOOKS = 20  # calls back to one address in a window
WINDOW_SECONDS = 60.0
LOOKS_AT_ONCE = 8
LONGEST_REASON = 300
NAMES_SECONDS = 2.0  # for name servers: the phone waits for its answer
MOST_NAMES = 64
log = logging.getLogger(__name__)

_GPU_HINT = "it is found by itself, or listed in the fleet file"
_HINT = "is Ollama running there, and does the network let its devices talk to each other?"


class Lookout:
    """On one event loop. `wall` is the wall clock."""

    def __init__(self, look: Look, resolve: Resolve, wall: Callable[[], float]) -> None:
        self._look, self._resolve, self._wall = look, resolve, wall
        self._looks = Attempts(LOOKS, WINDOW_SECONDS)
        self._looking = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def look_at(self, host: str, port: int) -> ProbeReport:
        """What answers there. Raises PhoneUnreachable where that is no phone, TooManyTries."""
        self._looks.spend(source_of(host), self._wall())
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            async with self._looking:
                report = await self._look(host, port)
        except (NodeUnreachable, NodeStalled) as error:
            message = f"nothing that speaks Ollama answers at {place} ({error.message})"
            raise PhoneUnreachable(message, hint=_HINT) from error
        except NodeError as error:  # it quotes what answered, which may not be the caller's to read
            log.info("what answers at %s is no Ollama: %s", place, plain(error.message, LONGEST_REASON))
            raise PhoneUnreachable(f"what answers at {place} is no Ollama", hint=_HINT) from error
        if not report.version:
            raise PhoneUnreachable(f"what answers at {place} is no Ollama")
        if report.gpu_node:  # it tells how much it can do at once, and phones are believed nothing of the kind
            raise PhoneUnreachable(f"what answers at {place} is a GPU node, and no phone", hint=_GPU_HINT)
        return report

    async def names_of(self, host: str, names: Collection[str]) -> frozenset[str]:
        """Those of these host names that lead to this address, as far as name servers say so in time."""
        asked = {name: asyncio.ensure_future(self._resolve(name)) for name in list(names)[:MOST_NAMES]}
        if not asked:
            return frozenset()
        try:
            await asyncio.wait(asked.values(), timeout=NAMES_SECONDS)
        finally:
            for question in asked.values():
                question.cancel()
        found = await asyncio.gather(*asked.values(), return_exceptions=True)
        answers = dict(zip(asked, found, strict=True))
        return frozenset(name for name, told in answers.items() if isinstance(told, list) and host in told)
