"""Follows the fleet file while requests run: what changed in it becomes events for the registry.

A file that breaks keeps the fleet as it was and says what is wrong in `state`. The folder is watched, not the file, so
that editors which replace a file by renaming are noticed; a look at the file every few seconds serves where the system
reports nothing (network folders, Windows drives under WSL), or has no more watches to give.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from watchfiles import awatch

from server.nodes import NodeSpec
from server.phones_file import FleetFileError, FleetFileState, Signature, load, signature_of
from server.registry import NodeListed, NodeUnlisted, RegistryEvent

LOOK_EVERY_SECONDS = 2.0
DEBOUNCE_MS = 100  # an editor's several steps are one change; more would only make the owner wait

Notices = Callable[[Sequence[Path]], AsyncIterator[object]]  # yields when something in the folders may have changed

log = logging.getLogger(__name__)


def changes(before: tuple[NodeSpec, ...], after: tuple[NodeSpec, ...], now: float) -> list[NodeListed | NodeUnlisted]:
    """What turns the one list into the other. Pure."""
    known = {spec.id: spec for spec in before}
    wanted = {spec.id for spec in after}
    gone: list[NodeListed | NodeUnlisted] = [NodeUnlisted(spec.id, now) for spec in before if spec.id not in wanted]
    return gone + [NodeListed(spec, now) for spec in after if known.get(spec.id) != spec]


def _folders_of(path: Path) -> list[Path]:
    """The folders where a change of the file shows: its own, and where it is a link, that of what it points to."""
    folders = {path.absolute().parent, Path(os.path.realpath(path)).parent}
    return [folder for folder in folders if folder.is_dir()]


def notices_of(folders: Sequence[Path]) -> AsyncIterator[object]:
    """What the system reports, and a look every few seconds besides."""
    look_ms = int(LOOK_EVERY_SECONDS * 1000)
    options = {"rust_timeout": look_ms, "yield_on_timeout": True, "debounce": DEBOUNCE_MS, "step": 20}
    return awatch(*folders, watch_filter=None, recursive=False, **options)  # type: ignore[arg-type]


class FleetFile:
    """`reload` once at start, then run `watch` as a task. `now` is the wall clock."""

    def __init__(
        self,
        path: Path,
        emit: Callable[[RegistryEvent], None],
        now: Callable[[], float],
        notices: Notices = notices_of,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.state = FleetFileState(path)
        self._emit = emit
        self._now = now
        self._notices = notices
        self._sleep = sleep
        self._seen: Signature | None = None

    def reload(self) -> None:
        """Read the file now and tell the registry what changed. What is wrong in it goes to `state`, never raised."""
        self._seen = signature_of(self.state.path)
        path, now = self.state.path, self._now()
        try:
            specs = load(path)
        except FleetFileError as problem:
            log.error("%s %s; the fleet stays as it was", path, problem)
            self.state = replace(self.state, error=problem.message, line=problem.line, column=problem.column)
            return
        events = changes(self.state.specs, specs, now)
        self.state = FleetFileState(path, specs, loaded_at=now)
        for event in events:
            self._emit(event)

    async def watch(self) -> None:
        """Reload whenever the file has changed. Runs until cancelled: where nothing is reported, by looking."""
        told = ""
        while True:
            try:
                await self._watch_folders(_folders_of(self.state.path))
            except (OSError, RuntimeError) as problem:  # a folder that went away, or the system has no watcher left
                if str(problem) != told:
                    log.warning("no news of %s (%s); it is looked at from time to time", self.state.path, problem)
                told = str(problem)
            await self._sleep(LOOK_EVERY_SECONDS)
            self._reload_if_changed()

    async def _watch_folders(self, folders: Sequence[Path]) -> None:
        if not folders:
            return
        self._reload_if_changed()  # what happened before we looked
        async for _ in self._notices(folders):
            self._reload_if_changed()

    def _reload_if_changed(self) -> None:
        if signature_of(self.state.path) != self._seen:
            self.reload()
