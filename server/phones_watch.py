"""Follows the fleet file while requests run: what changed in it becomes events for the registry.

A file that breaks keeps the fleet as it was and says what is wrong in `state`. The folder is watched, not the file, so
that editors which replace a file by renaming are noticed; a look at the file every few seconds serves where the system
reports nothing (network folders, Windows drives under WSL).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from watchfiles import awatch

from server.nodes import NodeSpec
from server.phones_file import FleetFileError, FleetFileState, load
from server.registry import NodeListed, NodeUnlisted, RegistryEvent

LOOK_EVERY_MS = 2000
DEBOUNCE_MS = 100  # an editor's several steps are one change; more would only make the owner wait
MISSING_FOLDER_SECONDS = 5.0

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


class FleetFile:
    """`reload` once at start, then run `watch` as a task. `now` is the wall clock."""

    def __init__(self, path: Path, emit: Callable[[RegistryEvent], None], now: Callable[[], float]) -> None:
        self.state = FleetFileState(path)
        self._emit = emit
        self._now = now
        self._seen: tuple[int, int, int] | None = None

    def reload(self) -> None:
        """Read the file now and tell the registry what changed. Never raises for what is in the file."""
        self._seen = self._signature()
        path, now = self.state.path, self._now()
        try:
            specs = load(path)
        except FleetFileError as problem:
            log.error("%s %s; the fleet stays as it was", path, problem)
            self.state = replace(self.state, error=str(problem), line=problem.line, column=problem.column)
            return
        events = changes(self.state.specs, specs, now)
        self.state = FleetFileState(path, specs, loaded_at=now)
        for event in events:
            self._emit(event)

    async def watch(self) -> None:
        """Reload whenever the file has changed. Runs until cancelled."""
        while True:
            try:
                await self._watch_folders(_folders_of(self.state.path))
            except FileNotFoundError:  # the folder went away under our eyes
                log.warning("the folder of %s is gone", self.state.path)
            await asyncio.sleep(MISSING_FOLDER_SECONDS)
            self._reload_if_changed()

    async def _watch_folders(self, folders: list[Path]) -> None:
        if not folders:
            return
        self._reload_if_changed()  # what happened before we looked
        options = {"rust_timeout": LOOK_EVERY_MS, "yield_on_timeout": True, "debounce": DEBOUNCE_MS, "step": 20}
        async for _ in awatch(*folders, watch_filter=None, recursive=False, **options):  # type: ignore[arg-type]
            self._reload_if_changed()

    def _reload_if_changed(self) -> None:
        if self._signature() != self._seen:
            self.reload()

    def _signature(self) -> tuple[int, int, int] | None:
        """What differs between two contents of the file, without reading it."""
        try:
            found = self.state.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
