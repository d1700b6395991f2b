"""STATS: what the node tells a client of itself.

Invariants: of other sessions only their small numbers and how much memory they hold are told, never a key, a name or
what they do; an answer fits one frame. Must not know streams' contents.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from gpu_node import __version__
from gpu_node.catalog import Entry
from gpu_node.device_fleet import DeviceFleet
from gpu_node.host import ModelHost
from gpu_node.model_folder import ModelDescription
from gpu_node.relay.call import RelayCall
from gpu_node.relay.counters import RelayFigures
from gpu_node.relay.loads import told_parameters
from gpu_node.relay.split_stats import events_of, pipeline_of, stages_of
from gpu_node.residents import Residents
from gpu_node.vram import Account
from wire.errors import OutOfBounds
from wire.messages import encode_message
from wire.messages_stats import DeviceRecord, HolderRecord, ModelRecord, ResidentRecord, Stats
from wire.scalars import Table, Value


class Listing(Protocol):
    def entries(self) -> list[Entry]:
        """Reads the disk: call it in a thread."""
        ...


# A model in more words than its record has: its name, what is known of it, and of a loaded one how its texts begin.
Describe = Callable[[str, ModelDescription, bool | None], Table]


class StatsRequests:
    def __init__(
        self,
        residents: Residents,
        catalog: Listing,
        figures: Callable[[], RelayFigures],
        describe: Describe,
        fleet: DeviceFleet | None = None,
    ) -> None:
        """`fleet`: the devices that models are split over, if they are."""
        self._residents, self._catalog, self._figures, self._describe = residents, catalog, figures, describe
        self._fleet = fleet

    async def handle(self, call: RelayCall) -> None:
        asked = call.message(Stats)
        entries = await asyncio.to_thread(self._catalog.entries)
        split = [told for host in self._residents.loaded if (told := host.pipeline) is not None]
        stats = Stats(
            self._values() + self._description(asked, entries),
            self._models(entries),
            tuple(resident_record(host) for host in self._residents.loaded),
            tuple(map(device_record, self._residents.accounts)),
            tuple(HolderRecord(one.owner, one.what, one.size_bytes, one.state) for one in self._residents.holdings),
            tuple(map(pipeline_of, split)),
            events_of(self._fleet.events) if self._fleet is not None else (),
            stages_of(split, self._fleet.devices if self._fleet is not None else ()),
        )
        await call.stream.send_message(fitting(stats), ends=True)

    def _values(self) -> Table:
        hosts, main, figures = self._residents.hosts, self._residents.main, self._figures()
        stats = [host.engine.stats() for host in hosts]
        told: dict[str, Value] = {
            "version": __version__,
            "slots": main.slots.running,  # the gateway sends no more at once
            "main_model": main.name,
            "running": sum(one.running for one in stats),
            "waiting": sum(one.waiting for one in stats) + sum(host.slots.waiting for host in hosts if not host.ready),
            "tokens_per_second": sum(one.tokens_per_second for one in stats),
            "connections": figures.connections,
            "sessions": figures.sessions,
            "cut_sessions": figures.cut_sessions,
            "streams": figures.streams,
        }
        return tuple(told.items())

    def _description(self, asked: Stats, entries: list[Entry]) -> Table:
        """Of the model that is asked for by name; nothing is loaded for it. Raises `RequestError`."""
        name = dict(asked.values).get("model")
        if not isinstance(name, str):
            return ()
        host = self._residents.find(name)
        known = (entry.description for entry in entries if entry.name == host.name)
        described = host.description or next(known, None)
        runner = host.engine.runner
        begins_with_bos = runner.vocabulary.begins_with_bos if runner is not None else None
        return self._describe(host.name, described, begins_with_bos) if described is not None else ()

    def _models(self, entries: list[Entry]) -> tuple[ModelRecord, ...]:
        """Those whose files are here, the node's own first."""
        main = self._residents.main
        found: dict[str, ModelDescription | None] = {main.name: main.description}
        found |= {entry.name: entry.description for entry in entries if not found.get(entry.name)}
        found |= {host.name: host.description for host in self._residents.hosts if host.description}
        return tuple(model_record(name, described) for name, described in found.items() if described)


def model_record(name: str, described: ModelDescription) -> ModelRecord:
    return ModelRecord(
        name,
        digest=described.digest,
        size_bytes=described.size_bytes,
        format=described.format,
        family=described.family,
        parameter_size=described.parameter_size,
        quantisation=described.quantisation,
        modified_s=max(described.modified_at, 0.0),
        context_tokens=max(described.context_length or 0, 0),
        capabilities=("completion",),
        parameters=told_parameters(described),
    )


def resident_record(host: ModelHost) -> ResidentRecord:
    runner, stats = host.engine.runner, host.engine.stats()
    assert runner is not None, "it is loaded"
    return ResidentRecord(
        host.name,
        host.state,
        context_tokens=host.context_tokens,
        device_bytes=host.held.total_bytes,
        cache_bytes=host.held.cache_bytes,
        slots=host.slots.running,
        running=host.running,
        waiting=stats.waiting,
        seconds_left=host.seconds_left if math.isfinite(host.seconds_left) else None,
        device=runner.device,
    )


def device_record(account: Account) -> DeviceRecord:
    kind = account.device.partition(":")[0]
    return DeviceRecord(account.device, kind, account.budget_bytes, account.free_bytes, account.used_bytes)


def fitting(stats: Stats) -> Stats:
    """As much of it as one frame holds; the last models and holders are left out first."""
    while True:
        try:
            encode_message(stats)
            return stats
        except OutOfBounds:
            if not stats.models and not stats.holders:
                raise
            models, holders = stats.models, stats.holders
            stats = replace(stats, models=models[: len(models) // 2], holders=holders[: len(holders) // 2])
