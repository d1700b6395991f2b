"""The memory of all devices: its accounts as they are now, and making room in them.

Invariants: room is made for one at a time, in the order of asking; what was found free is claimed before anything else
can happen; buffers never take what somebody leaves for a model that is about to come. Who leaves is decided by
`departures`, how a model is unloaded by `residents`. Must not know HTTP, connections, nor where models come from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpu_node.departures import Departures, Holder, Need, Nobody, Yielding, holdings, plan_room, who_holds_what
from gpu_node.errors import NoRoom, RequestError
from gpu_node.vram import Account, Claim, Holding

if TYPE_CHECKING:
    from gpu_node.host import ModelHost

log = logging.getLogger("gpu_node")


@dataclass(frozen=True, slots=True)
class _Coming:
    """What room is being made for."""

    need: Need
    device: str
    plan: Departures

    def after(self, account: Account) -> Account:
        """As it will be when those who leave have left."""
        for name in self.plan.names:
            account = account.release(name)
        for owner in self.plan.sessions:
            account = account.without_buffers(owner)
        return account.claim("", Claim(self.need.size_bytes, 0))


class Room:
    def __init__(
        self,
        accounts: Sequence[Account],
        loaded: Callable[[], Sequence[ModelHost]],
        leave: Callable[[ModelHost], Awaitable[None]],
        handing_over: Callable[[], bool] = lambda: False,
        sized: Callable[[Account], Account] = lambda account: account,
    ) -> None:
        """The first account is that of the usual device. `leave` unloads an idle model and releases its claim. While
        `handing_over` says so nobody is sent away; `idle` is set when that is over. `sized` gives an account the budget
        that it has by now: devices come and go."""
        self.sessions: Yielding = Nobody()
        self.moving = asyncio.Lock()  # held by whoever lets a model come or go; wakes its waiters in order
        self.idle = asyncio.Event()  # set whenever some model may have become idle
        self.loading = ""  # the model that is coming in just now
        self._loaded, self._leave, self._handing_over, self._sized = loaded, leave, handing_over, sized
        self._accounts = {account.device: account for account in accounts}
        self._usual = accounts[0].device
        self._coming: _Coming | None = None

    @property
    def accounts(self) -> tuple[Account, ...]:
        """As things are now: an engine may have given up its model or a part of its cache by itself."""
        held = {host.name: host.held for host in self._loaded()}
        for device, account in self._accounts.items():
            kept = {name: held.get(name, claim) for name, claim in account.claims.items()}
            gone = {name for name in kept if name not in held and name != self.loading}
            claims = {name: claim for name, claim in kept.items() if name not in gone}
            self._accounts[device] = self._sized(replace(account, claims=claims))
        return tuple(self._accounts.values())

    def account(self, device: str) -> Account:
        return {account.device: account for account in self.accounts}[device]

    def holders(self) -> list[Holder]:
        held = self._held()
        return [
            Holder(one.name, one.idle, one.last_used, one.kept, one.running, one.name in held) for one in self._loaded()
        ]

    def _held(self) -> set[str]:
        """Models that connected sessions have, or have asked for and are about to have."""
        cut = {one.owner for one in self.sessions.cut()}
        return set(self.sessions.held()) | {one.name for one in self._loaded() if one.owners - cut}

    def holdings(self) -> list[Holding]:
        return holdings(self.accounts, self.holders(), self.sessions.cut())

    def device_of(self, told: str) -> str:
        """Whose account a model has on a device that torch calls so; what nobody knows has the usual one's. Where there
        is a pool, all models are in it."""
        pool = next((account.device for account in self._accounts.values() if account.is_pool), None)
        return pool or self._known(told) or self._usual

    def claim(self, name: str, device: str, claim: Claim) -> None:
        self.release(name)
        self._accounts[device] = self._accounts[device].claim(name, claim)

    def release(self, name: str) -> None:
        """What the model had claimed."""
        self._accounts = {device: account.release(name) for device, account in self._accounts.items()}

    async def make(self, need: Need, device: str, patient: bool = True) -> None:
        """Returns with the room there, for whoever claims it before the next await. The caller has `moving`.

        Raises `NoRoom`; unless `patient` also where somebody busy would have to leave."""
        asked: set[str] = set()
        try:
            while True:
                while self._handing_over():
                    self.idle.clear()
                    await self.idle.wait()
                account, holders = self.account(device), self.holders()
                cut = [one for one in self.sessions.cut() if one.owner not in asked]
                plan = plan_room(account, need, holders, cut)
                if plan.busy and not patient:
                    self._refuse(account, need, holders)
                if not plan.names and not plan.sessions:
                    return
                self._coming = _Coming(need, device, plan)
                asked.update(plan.sessions)
                await self._end_sessions(plan.sessions)
                await self._send_away([name for name in plan.names if name not in self._held()])
        finally:
            self._coming = None

    async def empty(self, device: str, but: str) -> bool:
        """Everybody leaves who may at once: an estimate was too small. False when there is nobody. As `make`."""
        cut, account = self.sessions.cut(), self.account(device)
        owners = [one.owner for one in cut if account.buffers.get(one.owner)]
        names = [one.name for one in self.holders() if one.idle and not one.held and one.name != but]
        await self._end_sessions(owners)
        await self._send_away(names)
        return bool(owners or names)

    async def reserve(self, owner: str, device: str, size_bytes: int) -> str:
        """So much more for buffers of a session; the device that has it. `device` empty: where there is room.

        Waits for room only where others have to leave. Raises `NoRoom`, and `RequestError` for an unknown device."""
        chosen = self._device_for(device, size_bytes)
        if not self._has_free(chosen, size_bytes):
            async with self.moving:
                await self.make(Need(owner, size_bytes, "buffers"), chosen, patient=False)
                self._lend(owner, chosen, size_bytes)
            return chosen
        self._lend(owner, chosen, size_bytes)
        return chosen

    def take_back(self, owner: str, device: str, size_bytes: int) -> None:
        self._accounts[device] = self._accounts[device].take_back(owner, size_bytes)

    def _lend(self, owner: str, device: str, size_bytes: int) -> None:
        self._accounts[device] = self._accounts[device].lend(owner, size_bytes)

    def _device_for(self, told: str, size_bytes: int) -> str:
        if told:
            known = self._known(told)
            if known is None:
                here = ", ".join(account.device for account in self._accounts.values() if not account.is_pool)
                raise RequestError(f"there is no device {told} on this node, but {here}", field="device")
            return known
        own = [account.device for account in self._accounts.values() if not account.is_pool]
        return next((device for device in own if self._has_free(device, size_bytes)), own[0])

    def _has_free(self, device: str, size_bytes: int) -> bool:
        account, coming = self.account(device), self._coming
        free = account.free_bytes
        if coming is not None and coming.device == device:
            free = min(free, coming.after(account).free_bytes)
        return size_bytes <= free

    def _known(self, told: str) -> str | None:
        kind = told.partition(":")[0]
        own = [device for device, account in self._accounts.items() if not account.is_pool]
        return next((device for device in own if device.partition(":")[0] == kind), None)

    def _refuse(self, account: Account, need: Need, holders: Sequence[Holder]) -> None:
        told = f"there is no room for {need.name}: {who_holds_what(account, holders)}"
        raise NoRoom(told, account.free_bytes, need.size_bytes)

    async def _end_sessions(self, owners: Sequence[str]) -> None:
        for owner in owners:
            log.info("%s is over, to make room", owner)
            await self.sessions.give_up(owner)

    async def _send_away(self, names: Sequence[str]) -> None:
        leaving = [host for name in names for host in self._loaded() if host.name == name]
        for host in leaving:
            host.leaving = True  # requests for it that come now wait for their turn
        try:
            for host in leaving:
                while not host.idle:
                    self.idle.clear()
                    await self.idle.wait()
                log.info("%s leaves to make room", host.name)
                await self._leave(host)
        finally:
            for host in leaving:
                host.leaving = False
