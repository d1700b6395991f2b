"""The fleet file and the phones' tokens beside it, changed together and one change at a time.

Invariants: the file is read anew before each change, so that nobody's edit is lost; a phone stands in the file only
once its token is kept, and a token whose phone did not get into the file is as before; a change that has begun comes
to its end, though who wanted it is cancelled meanwhile. Must not know invitations, HTTP or where phones are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from server.errors import FleetFileUnusable, NodeUnknown
from server.nodes import NodeId, NodeSpec
from server.phones.secrets_file import Secrets, secrets_path
from server.phones_file import FleetFileError, edit
from server.phones_watch import FleetFile

Edit = Callable[[Sequence[NodeSpec]], Sequence[NodeSpec]]


class Ledger:
    """On one event loop. All raise FleetFileUnusable where a file cannot be read or written."""

    def __init__(self, fleet_file: FleetFile) -> None:
        self._fleet_file = fleet_file
        self._secrets = Secrets(secrets_path(fleet_file.state.path))
        self._writing = asyncio.Lock()

    @property
    def is_broken(self) -> bool:
        """What stands in the fleet file is not known now."""
        return self._fleet_file.state.error is not None

    def holder(self, token: str) -> NodeId | None:
        return self._secrets.holder(token)

    def knows(self, phone_id: NodeId) -> bool:
        return self._secrets.knows(phone_id)

    async def change(self, wanted: Edit) -> None:
        """Write the fleet file and let the fleet know. Raises what `wanted` raises, too."""
        await _whole(self._change(wanted))

    async def admit(
        self, phone_id: NodeId, token: str, wanted: Edit, admitted: Callable[[], None] = lambda: None
    ) -> None:
        """Like `change`, for a phone that has this token from now on. `admitted` is called once it stands there."""
        await _whole(self._admit(phone_id, token, wanted, admitted))

    async def dismiss(self, phone_id: NodeId) -> None:
        """The phone leaves the file, and its token is none any more. Raises NodeUnknown."""
        await _whole(self._dismiss(phone_id))

    async def _change(self, wanted: Edit) -> None:
        async with self._writing:
            await self._write(wanted)

    async def _admit(self, phone_id: NodeId, token: str, wanted: Edit, admitted: Callable[[], None]) -> None:
        async with self._writing:
            before = await asyncio.to_thread(self._secrets.give, phone_id, token)
            try:
                await self._write(wanted)
            except BaseException:
                await asyncio.to_thread(self._secrets.restore, phone_id, before)
                raise
            admitted()

    async def _dismiss(self, phone_id: NodeId) -> None:
        def without(specs: Sequence[NodeSpec]) -> Sequence[NodeSpec]:
            return [spec for spec in edited(specs, phone_id, lambda spec: spec) if spec.id != phone_id]

        async with self._writing:
            await self._write(without)
            await asyncio.to_thread(self._secrets.take, phone_id)

    async def _write(self, wanted: Edit) -> None:
        await asyncio.to_thread(_edit, self._fleet_file.state.path, wanted)
        self._fleet_file.reload()


def edited(specs: Sequence[NodeSpec], phone_id: NodeId, change: Callable[[NodeSpec], NodeSpec]) -> list[NodeSpec]:
    """Raises NodeUnknown where it does not stand in the file."""
    if not any(spec.id == phone_id for spec in specs):
        raise NodeUnknown(phone_id)
    return [change(spec) if spec.id == phone_id else spec for spec in specs]


async def _whole(change: Coroutine[None, None, None]) -> None:
    """A thread that writes cannot be called back: who is cancelled meanwhile waits until both files fit again."""
    task = asyncio.create_task(change, name="a change of the fleet file")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody is left who would be told
        raise


def _edit(path: Path, wanted: Edit) -> None:
    try:
        edit(path, wanted)
    except FleetFileError as problem:
        raise FleetFileUnusable(f"{path} cannot be changed while it is broken: {problem}") from problem
    except OSError as problem:
        raise FleetFileUnusable(f"{path} cannot be written: {problem.strerror or problem}") from problem
