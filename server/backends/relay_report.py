"""What a relay node tells of itself (STATS), as a `ProbeReport` and in the shapes of Ollama's listings. Pure.

A report says the same of a node whether it was probed over HTTP or here: names, digests and records are those that our
own node's HTTP API gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from server.nodes import ModelCopy, ModelKey, ProbeReport, ResidentModel, model_key
from wire.messages_stats import ModelRecord, ResidentRecord, Stats

MOST_SLOTS = 10_000  # as in the fleet file: a node that boasts of more must not draw all requests of a fleet
LONGEST_STAY = timedelta(days=292 * 365)  # what Ollama says of a model that stays for ever
LATEST_SECONDS = 253_402_300_799.0  # the last second of the year 9999, beyond which no date goes
READY = "ready"
INFO = "info."  # before names of Ollama's `model_info`
SCALARS = (str, bool, int, float)

Record = dict[str, Any]


def report_of(stats: Stats, now: datetime | None = None) -> ProbeReport:
    values = dict(stats.values)
    slots, version = values.get("slots"), values.get("version")
    listings = {model_key(model.name): listed(model) for model in stats.models}
    moment = now or datetime.now(UTC)
    return ProbeReport(
        version=version if isinstance(version, str) else "",
        models=tuple(_copy(model, listings[model_key(model.name)]) for model in stats.models),
        resident=tuple(_resident(one, listings, moment) for one in stats.residents if one.state == READY),
        slots=min(slots, MOST_SLOTS) if type(slots) is int and slots > 0 else None,
        continues_assistant=True,
        renders=True,
        gpu_node=True,
    )


def parameters_of(stats: Stats) -> dict[ModelKey, Mapping[str, Any]]:
    """What the makers of its models want where a request says nothing, by Ollama's names."""
    return {model_key(model.name): dict(model.parameters) for model in stats.models}


def listed(model: ModelRecord) -> Record:
    """As in /api/tags."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _time(model.modified_s),
        "size": model.size_bytes,
        "digest": _digest(model.digest),
        "details": {**_details(model), **_length(model)},
        "capabilities": list(model.capabilities) or ["completion"],
    }


def shown(model: ModelRecord, values: Mapping[str, Any]) -> Record:
    """As in /api/show, by the record and what the node tells of a model that is asked for by name."""
    info = {"general.architecture": model.family, f"{model.family}.context_length": model.context_tokens}
    told = {name.removeprefix(INFO): value for name, value in values.items() if name.startswith(INFO)}
    licence = values.get("licence")
    record: Record = {"license": licence} if isinstance(licence, str) and licence else {}
    return record | {
        "modelfile": f"# served by Potluck\nFROM {model.name}\n",
        "parameters": _parameter_lines(dict(model.parameters)),
        "template": str(values.get("template") or ""),
        "details": _details(model),
        "model_info": {name: value for name, value in (info | told).items() if type(value) in SCALARS and value != ""},
        "capabilities": list(model.capabilities) or ["completion"],
        "modified_at": _time(model.modified_s),
    }


def _copy(model: ModelRecord, listing: Record) -> ModelCopy:
    return ModelCopy(model.name, _digest(model.digest), model.size_bytes, listing)


def _resident(one: ResidentRecord, listings: Mapping[ModelKey, Record], now: datetime) -> ResidentModel:
    listing = listings.get(model_key(one.model), {})
    expires = _expires(one.seconds_left, now)
    details = {name: value for name, value in listing.get("details", {}).items() if name != "context_length"}
    record = {
        "name": one.model,
        "model": one.model,
        "size": one.device_bytes,
        "digest": listing.get("digest", ""),
        "details": details,
        "expires_at": expires,
        "size_vram": one.device_bytes if one.device.startswith("cuda") else 0,
        "context_length": one.context_tokens,
    }
    return ResidentModel(one.model, one.context_tokens or None, expires, record)


def _details(model: ModelRecord) -> Record:
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantisation,
    }


def _length(model: ModelRecord) -> Record:
    return {"context_length": model.context_tokens} if model.context_tokens else {}


def _digest(text: str) -> str:
    return text.removeprefix("sha256:")


def _expires(seconds_left: float | None, now: datetime) -> str:
    longest = LONGEST_STAY.total_seconds()
    return _format(now + timedelta(seconds=longest if seconds_left is None else min(seconds_left, longest)))


def _time(seconds: float) -> str:
    return _format(datetime.fromtimestamp(min(seconds, LATEST_SECONDS), UTC))


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _parameter_lines(parameters: Mapping[str, Any]) -> str:
    """One value a line; an option with several values has several lines."""
    pairs = [
        (name, one)
        for name, value in parameters.items()
        for one in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return "\n".join(f"{name:<30} " + (f'"{one}"' if isinstance(one, str) else str(one)) for name, one in pairs)
