"""Who leaves when somebody needs room: the rule, as a pure function of who is here.

First goes what sessions without a connection hold, that of the longest cut one first; then models that are idle and
held by no connected session, least recently used first. For the sake of a model, kept ones go after these, and busy
ones as soon as they are idle. What a connected session holds stays. Invariant: nobody leaves unless that makes the
room. Must not know engines, connections or clocks: times are compared, never taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gpu_node.errors import NoRoom
from gpu_node.vram import Account, Holding, gigabytes


@dataclass(frozen=True, slots=True)
class Holder:
    """A loaded model as the choice of who leaves sees it."""

    name: str
    idle: bool
    last_used: float
    kept: bool = False  # for ever, unless nobody else can make room
    requests: int = 0
    held: bool = False  # by a connected session: it stays


@dataclass(frozen=True, slots=True)
class CutSession:
    """A session that nobody is connected to, and that is kept for a while only in case somebody comes back."""

    owner: str
    cut_since: float
    models: frozenset[str] = frozenset()  # that it holds


class Yielding(Protocol):
    """The sessions, as far as they can make room."""

    def cut(self) -> Sequence[CutSession]:
        """Those that would give up now."""
        ...

    def held(self) -> Collection[str]:
        """Models that connected sessions hold."""
        ...

    async def give_up(self, owner: str) -> None:
        """End this session; when this returns it holds nothing any more. Called while room is being made: it may
        let go of models, but must not wait until one is unloaded."""
        ...


class Nobody:
    """Where there are no sessions."""

    def cut(self) -> Sequence[CutSession]:
        return ()

    def held(self) -> Collection[str]:
        return ()

    async def give_up(self, owner: str) -> None:
        raise AssertionError("there is no session")


@dataclass(frozen=True, slots=True)
class Need:
    name: str  # the model's or the session's
    size_bytes: int
    kind: Literal["model", "buffers"] = "model"


@dataclass(frozen=True, slots=True)
class Departures:
    """Who leaves, in this order; models that are busy only when they have become idle."""

    names: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()  # before any model


@dataclass(frozen=True, slots=True)
class _Step:
    owner: str
    session: bool
    gives_bytes: int
    idle: bool = True


def plan_room(account: Account, need: Need, holders: Sequence[Holder], cut: Sequence[CutSession] = ()) -> Departures:
    """Raises `NoRoom`, with what is free, when not even everybody who may leave would make the room."""
    if need.size_bytes > account.budget_bytes:
        raise _no_room(
            account,
            need,
            f"{need.name} needs {gigabytes(need.size_bytes)} and {account.has} "
            f"{gigabytes(account.budget_bytes)} to give" + (SMALLER if need.kind == "model" else ""),
        )
    beside = account.release(need.name) if need.kind == "model" else account
    missing = need.size_bytes - (account.budget_bytes - beside.used_bytes)
    leaving: list[_Step] = []
    steps = _in_order(beside, need, holders, cut)
    while missing > 0:
        step = next(steps, None)
        if step is None:
            told = who_holds_what(account, holders)
            raise _no_room(account, need, f"{need.name} needs {gigabytes(need.size_bytes)}, and {told}")
        leaving.append(step)
        missing -= step.gives_bytes
    models = [step for step in leaving if not step.session]
    return Departures(
        tuple(step.owner for step in models),
        tuple(step.owner for step in models if not step.idle),
        tuple(step.owner for step in leaving if step.session),
    )


SMALLER = "; a shorter context, a smaller cache or quantised weights need less"


def _in_order(account: Account, need: Need, holders: Sequence[Holder], cut: Sequence[CutSession]) -> Iterator[_Step]:
    """Everybody who may leave and would give something, who goes first first."""
    models = {one.name: one for one in holders if one.name in account.claims and not one.held}
    gone: set[str] = set()

    def of(holder: Holder) -> _Step:
        gone.add(holder.name)
        return _Step(holder.name, False, account.claims[holder.name].total_bytes, holder.idle)

    for session in sorted(cut, key=lambda one: one.cut_since):
        own = [models[name] for name in sorted(session.models) if name in models and name not in gone]
        own = [one for one in own if one.idle and not one.kept and one.name != need.name]
        held = account.buffers.get(session.owner, 0)
        if session.owner == need.name or not (held or own):
            continue
        yield _Step(session.owner, True, held)
        yield from map(of, own)
    order = sorted(models.values(), key=lambda holder: (not holder.idle, holder.kept, holder.last_used))
    for holder in order:
        if holder.name not in gone and (need.kind == "model" or (holder.idle and not holder.kept)):
            yield of(holder)


def _no_room(account: Account, need: Need, told: str) -> NoRoom:
    return NoRoom(told, account.free_bytes, need.size_bytes)


def who_holds_what(account: Account, holders: Sequence[Holder]) -> str:
    if not account.claims and not account.buffers:
        return f"{account.has} {gigabytes(account.free_bytes)} free"
    requests = {holder.name: holder.requests for holder in holders}
    parts = [
        f"{name} holds {gigabytes(claim.total_bytes)}"
        + (f" and is answering {requests[name]}" if requests.get(name) else "")
        for name, claim in account.claims.items()
    ]
    if account.buffers:
        parts.append(f"buffers of clients hold {gigabytes(sum(account.buffers.values()))}")
    where = "all devices" if account.is_pool else account.device
    return f"of {gigabytes(account.budget_bytes)} on {where} " + ", ".join(parts)


def holdings(accounts: Sequence[Account], holders: Sequence[Holder], cut: Sequence[CutSession]) -> list[Holding]:
    """Who holds what, models first."""
    busy = {one.name for one in holders if one.held or not one.idle}
    left = {one.owner for one in cut}
    found = [
        Holding(name, "model", account.device, claim.total_bytes, "live" if name in busy else "idle")
        for account in accounts
        for name, claim in account.claims.items()
    ]
    return found + [
        Holding(owner, "buffers", account.device, size, "cut" if owner in left else "live")
        for account in accounts
        for owner, size in account.buffers.items()
    ]
