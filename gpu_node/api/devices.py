"""`/api/devices`: which devices models are split over, and people's wishes: one more, one less, one of another size.

A wish is answered at once with the device as it is then; `?wait=SECONDS` waits until it is fulfilled or refused. A
removal waits a little by itself, since whether the rest can hold the models is known soon. Invariants: a wait ends with
its client, and the wish stays; devices are told in the fleet's own words. Must not know how plans are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import isfinite
from typing import Any, Protocol, runtime_checkable

from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node.api.body import read_body
from gpu_node.api.replies import WatchedAnswer, error_reply, json_reply, send_whole
from gpu_node.api.schemas import Body, parse
from gpu_node.api.service import Service
from gpu_node.device_fleet import DeviceFleet, FleetDevice, one_device
from gpu_node.devices import Device
from gpu_node.errors import RequestError, UsageError
from gpu_node.load_wish import parse_bytes
from gpu_node.pipeline_record import event_record

Record = dict[str, Any]
PREFIX = "/api/devices/"
# A load over a slow disk takes minutes; who waits longer than this asks again.
LONGEST_WAIT_SECONDS = 600.0
# Planning takes milliseconds, and a plan that is being carried out is finished first.
REMOVAL_WAIT_SECONDS = 2.0
START_WITH = (
    'this node uses one device, in its own process; start it with --devices "cpu:2GiB,cpu:1GiB" to split models'
)


class DeviceBody(Body):
    """`device` adds one, `name` with `budget` gives one another size, `name` alone wants one back."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    device: str | None = None
    name: str | None = None
    budget: int | str | None = None


@runtime_checkable
class Depending(Protocol):
    """A runner that is split over devices."""

    def can_do_without(self, name: str) -> str | None:
        """Why it cannot, in one sentence."""
        ...


class DevicesApi:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def listed(self, request: Request) -> Response:
        fleet = self._service.fleet
        if fleet is None:
            accounts = self._service.residents.accounts
            return json_reply({"split": False, "devices": [_only(account.device, account.budget_bytes, {
                model: claim.total_bytes for model, claim in account.claims.items()
            }) for account in accounts], "events": []})  # fmt: skip
        return json_reply(
            {
                "split": True,
                "devices": [device_record(one, fleet.now) for one in fleet.devices],
                "events": [event_record(event) for event in fleet.events],
            }
        )

    async def change(self, request: Request) -> Response:
        """POST. Answers with the device; after `?wait=` it holds a part, has its size, or was refused."""
        fleet, seconds = self._fleet(), _wait_of(request, 0.0)
        body = parse(DeviceBody, await read_body(request, self._service.max_body_bytes))
        if (body.device is None) == (body.name is None):
            raise RequestError('give "device" to add one, or the "name" of one that is here', field="device")
        if body.device is not None and body.budget is not None:
            raise RequestError('a new device has its budget in its text, as in "cpu:1GiB"', field="budget")
        name = await asyncio.to_thread(self._wish, fleet, body)
        done = _has_size if body.budget is not None else _is_used
        return self._answer(fleet, name, done, seconds)

    async def remove(self, request: Request) -> Response:
        """DELETE. 200 when it has left, 202 while it drains, 409 where the models cannot do without it."""
        fleet, seconds = self._fleet(), _wait_of(request, REMOVAL_WAIT_SECONDS)
        name = request.scope["path"].removeprefix(PREFIX)  # as the server has decoded it: once
        force = request.query_params.get("force", "").lower()
        if force not in ("", "true", "false", "1", "0"):
            raise RequestError("force is true or false", field="force")
        forced = force in ("true", "1")
        if not forced:
            await asyncio.to_thread(self._check_needed, fleet, name)
        fleet.remove(name, forced)
        return self._answer(fleet, name, _is_settled, seconds)

    def _fleet(self) -> DeviceFleet:
        if self._service.fleet is None:
            raise RequestError(START_WITH, status=409)
        return self._service.fleet

    def _wish(self, fleet: DeviceFleet, body: DeviceBody) -> str:
        """Carries it out; the device's name. Reads how much memory is free: call it in a thread."""
        available = self._service.machine().available_bytes
        try:
            if body.device is not None:
                device = one_device(body.device)
                free = available if device.kind == "cpu" else self._free_on(fleet, device)
                return fleet.add(body.device, available, free).name
            name = body.name or ""
            if body.budget is None:
                return fleet.ask(name, available).name
            return fleet.resize(name, _bytes(body.budget), available).name
        except UsageError as error:
            field = "device" if body.device is not None else "budget"
            raise RequestError(str(error), field=field) from error

    def _free_on(self, fleet: DeviceFleet, device: Device) -> int | None:
        """What the driver says is free on its card, which must be in this machine, or have been; none: nobody is asked.

        Over a card that is not here no plan could be made, and with it over none of the others."""
        if any(one.device.card == device.card for one in fleet.devices):
            return None
        if device.kind == "cuda":
            cards = {f"cuda:{place}": gpu.free_bytes for place, gpu in enumerate(self._service.gpus())}
        else:  # only torch knows them; whoever looks from time to time does not
            probing = self._service.probing
            found = probing.findings().devices if probing is not None else ()
            cards = {one.card: one.free_bytes for one in found if one.kind != "cpu"}
        if device.card not in cards:
            there = ", ".join(cards) or "none"
            raise RequestError(f"this machine has no {device.card}; cards: {there}", status=404, field="device")
        return cards[device.card] if device.kind == "cuda" else None

    def _check_needed(self, fleet: DeviceFleet, name: str) -> None:
        """Raises with the sentence of the first model that cannot do without it."""
        found = fleet.find(name)
        if found is None or found.state != "present" or len(fleet.present()) < 2:
            return  # the last one stays, forced or not: the fleet says so
        for host in self._service.residents.hosts:
            runner = host.engine.runner
            if isinstance(runner, Depending) and (reason := runner.can_do_without(name)):
                raise RequestError(f"{reason.rstrip('.')}; it is removed all the same with ?force=true", status=409)

    def _answer(self, fleet: DeviceFleet, name: str, done: Callable[[FleetDevice], bool], seconds: float) -> Response:
        async def answer(send: Send) -> None:
            await settled(fleet, name, done, seconds)
            found = fleet.table.named(name)
            await send_whole(send, _outcome(device_record(found, fleet.now), found, done))

        return WatchedAnswer(answer)


def device_record(found: FleetDevice, now: float) -> Record:
    return {
        "device": found.name,
        "kind": found.device.kind,
        "state": found.state,
        "budget_bytes": found.device.budget_bytes,
        "wanted_bytes": found.wanted_bytes,
        "speed": found.device.speed,
        "free_bytes": found.free_bytes,
        "models": dict(found.held),
        "losses": found.losses,
        "reason": found.reason or None,
        "state_seconds": round(now - found.since, 1),
        "retry_seconds": None if found.until is None else round(max(found.until - now, 0.0), 1),
    }


async def settled(fleet: DeviceFleet, name: str, done: Callable[[FleetDevice], bool], seconds: float) -> None:
    """Returns when it is done, or the time is over."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    unwatch = fleet.watch(wake, every=True)
    try:
        async with asyncio.timeout(seconds):
            while not done(fleet.table.named(name)):
                await changed.wait()
                changed.clear()
    except TimeoutError:
        pass
    finally:
        unwatch()


def _is_used(found: FleetDevice) -> bool:
    return bool(found.held) or found.state != "present" or bool(found.reason)


def _has_size(found: FleetDevice) -> bool:
    return found.wanted_bytes is None


def _is_settled(found: FleetDevice) -> bool:
    return found.state != "leaving"


def _outcome(record: Record, found: FleetDevice, done: Callable[[FleetDevice], bool]) -> Response:
    if done is _is_used or (done is _has_size and not found.reason):
        return json_reply(record)
    if done is _is_settled and found.state in ("gone", "leaving"):
        return json_reply(record, 200 if found.state == "gone" else 202)
    return error_reply(found.reason or f"{found.name} is {found.state}", 409)


def _only(name: str, budget_bytes: int, held: dict[str, int]) -> Record:
    """The one device of a node that splits nothing, in the same words."""
    kind = name.partition(":")[0]
    found = FleetDevice(Device(name, "cpu", 0, budget_bytes), held=tuple(held.items()))
    return device_record(found, 0.0) | {"kind": kind, "state_seconds": None}


def _wait_of(request: Request, usual: float) -> float:
    text = request.query_params.get("wait")
    try:
        seconds = usual if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not (isfinite(seconds) and 0 <= seconds <= LONGEST_WAIT_SECONDS):
        raise RequestError(f"wait is a number of seconds, {LONGEST_WAIT_SECONDS:.0f} at most", field="wait")
    return seconds


def _bytes(value: int | str) -> int:
    try:
        return parse_bytes(value)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"budget: {error}", field="budget") from error
