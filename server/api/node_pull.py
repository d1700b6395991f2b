"""One model pulled onto one phone: its tries, its place among the others, what is told of it, and its end.

What broke off is tried again, and goes on where it stopped. One that stands still while others wait leaves its place to
them and stands behind all of them. What records and errors mean, and when it is enough, `server.pulls` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.errors import NodeError, NodeStalled
from server.nodes import Node, NodeId, NodeStatus, model_key
from server.pulls import SUCCESS, Progress, hindrance, is_final, listed_key, shown, words_of

ALL_SECONDS = 86_400.0  # of one node, over all its tries
PROGRESS_SECONDS = 0.25  # of one node: a bar cannot show more
LOOK_SECONDS = 2.0  # how often a phone that says nothing is looked at, for how long already
MOST_WAITING = 1024  # records that a slow reader has not taken yet; further progress is left out

Record = dict[str, Any]


class Pulls(Protocol):
    """What a pull needs of its surroundings (see `server.api.model_pulling.Pulling`)."""

    def node(self, node_id: NodeId) -> Node | None: ...

    async def look_again(self, node: Node) -> None: ...

    async def pause(self, seconds: float) -> None: ...

    def now(self) -> float: ...

    def told_by(self, node: Node, model: str, seconds: float) -> AsyncGenerator[Record, None]: ...


class Line:
    """So many places. Who comes, or comes again, stands behind all that wait."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self.waiting = 0

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


@dataclass(slots=True)
class Telling:
    """The records of all nodes on their way to the caller, and how each ended."""

    records: asyncio.Queue[tuple[Record, bool]] = field(default_factory=lambda: asyncio.Queue(MOST_WAITING))  # its end?
    pulled: list[str] = field(default_factory=list)
    had: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def progress(self, record: Record) -> None:
        if not self.records.full():
            self.records.put_nowait((record, False))

    def summary(self, model: str) -> Record:
        return {"status": "done", "model": model, "pulled": self.pulled, "had": self.had, "failed": self.failed}


class NodePull:
    """The pull on one node, over all its tries."""

    def __init__(self, pulling: Pulls, node_id: NodeId, label: str, model: str, telling: Telling) -> None:
        self.label = label
        self._pulling, self._id, self._model, self._telling = pulling, node_id, model, telling
        self._progress = Progress()
        self._until = pulling.now() + ALL_SECONDS
        self._tried = False
        self._told_at = 0.0
        self._told: set[object] = set()  # by this try: steps, and digests that are whole

    async def run(self, line: Line) -> None:
        """To its end, which is told. It has a place in the line while it loads."""
        before = self._digest(self._pulling.node(self._id))
        pause: float | None = 0.0
        while pause is not None:
            if pause:
                await self._pulling.pause(pause)
            async with line:
                pause = await self._turn(line, before)

    async def _turn(self, line: Line, before: str | None) -> float | None:
        """One time in a place: how long to wait before the next one; None: it is over."""
        while True:
            node = self._pulling.node(self._id)  # its address may have changed meanwhile
            hindered = "it left the fleet" if node is None else hindrance(node, self._model, tried=self._tried)
            if node is None or hindered is not None:
                await self.end(hindered)
                return None
            try:
                await self._once(node, line)
            except NodeError as error:
                gives_way, pause = await self._failed(error, line)
                if pause is None or gives_way:
                    return pause
                await self._pulling.pause(pause)
                continue
            if not self._has_left():
                await self._pulling.look_again(node)
            if self._has_left():
                await self.end("it left the fleet")
                return None
            after = self._digest(self._pulling.node(self._id))
            await self.end(None, had=before is not None and before == after)
            return None

    async def _once(self, node: Node, line: Line) -> None:
        """One try. It ends early where the node leaves the fleet. Raises NodeError."""
        self._told.clear()
        self._progress = self._progress.begun(self._pulling.now())
        reading = asyncio.create_task(self._read(node, line))
        try:
            while not reading.done():
                await asyncio.wait((reading,), timeout=LOOK_SECONDS)
                if not reading.done():
                    self._heed(line)
            reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, node: Node, line: Line) -> None:
        pulling = self._pulling
        left = max(1.0, self._until - pulling.now())
        async with aclosing(pulling.told_by(node, self._model, left)) as records:
            async for record in records:
                if record.get("status") == SUCCESS or self._has_left():
                    return
                told = shown(record)
                self._progress = self._progress.told(told, pulling.now())
                self._tell(told, self._heed(line))

    def _heed(self, line: Line) -> float:
        """The time; raises NodeStalled where it has stood still for too long."""
        now = self._pulling.now()
        error = self._progress.standstill(now, others_wait=line.waiting > 0)
        if error is not None:
            raise error
        return now

    def _has_left(self) -> bool:
        node = self._pulling.node(self._id)
        return node is None or node.status is NodeStatus.DRAINING

    async def _failed(self, error: NodeError, line: Line) -> tuple[bool, float | None]:
        """Do others go first, and after which pause is it tried again? None: never, which is told."""
        words = words_of(error)
        self._progress = self._progress.failed()
        pause = self._progress.pause_seconds
        if is_final(error) or pause is None or self._pulling.now() + pause >= self._until:
            await self.end(words)
            return False, None
        gives_way = self._progress.gives_way(error, others_wait=line.waiting > 0)
        # one that fell silent in the middle and is silent to probes too is not waited for so long again
        self._tried = gives_way or not (isinstance(error, NodeStalled) and error.phase != "connect")
        record: Record = {"node": self.label, "status": "trying again", "reason": words, "in_seconds": pause}
        if gives_way:
            record = {"node": self.label, "status": "waiting", "reason": words}
        self._telling.progress(record)
        return gives_way, pause

    def _tell(self, record: Record, now: float) -> None:
        """What is new at once, mere progress a few times a second."""
        digest = record.get("digest", "")
        news: set[object] = {(record["status"], digest)}
        if "total" in record and record.get("completed") == record["total"]:
            news.add(digest)
        if not news <= self._told or now - self._told_at >= PROGRESS_SECONDS:
            self._told |= news
            self._told_at = now
            self._telling.progress({"node": self.label, **record})

    async def end(self, error: str | None, *, had: bool = False) -> None:
        telling = self._telling
        if error is not None:
            telling.failed[self.label] = error
            await telling.records.put(({"node": self.label, "status": "error", "error": error}, True))
            return
        (telling.had if had else telling.pulled).append(self.label)
        await telling.records.put(({"node": self.label, "status": SUCCESS}, True))

    def _digest(self, node: Node | None) -> str | None:
        """Of the model as the node has it; None where it has none. Its owner may let it serve fewer than it has."""
        key = listed_key(self._model)
        copies = node.report.models if node is not None and node.report is not None else ()
        return next((copy.digest for copy in copies if model_key(copy.name) == key), None)
