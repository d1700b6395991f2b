"""Looks at phones before they are believed: does an Ollama answer where the phone's own packets come from?

Bounded: some at once, some a minute for each address. Must not know invitations, files or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.errors import NodeError, NodeStalled, NodeUnreachable, PhoneUnreachable
from server.nodes import ProbeReport
from server.phones.attempts import Attempts, source_of
from server.phones.registration import plain

Look = Callable[[str, int], Awaitable[ProbeReport]]  # asks /api/version and /api/tags there; raises NodeError

LOOKS = 20  # calls back to one address in a window
WINDOW_SECONDS = 60.0
LOOKS_AT_ONCE = 8
LONGEST_REASON = 300
log = logging.getLogger(__name__)

_GPU_HINT = "it is found by itself, or listed in the fleet file"
_HINT = "is Ollama running there, and does the network let its devices talk to each other?"


class Lookout:
    """On one event loop. `wall` is the wall clock."""

    def __init__(self, look: Look, wall: Callable[[], float]) -> None:
        self._look, self._wall = look, wall
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
