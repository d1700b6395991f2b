"""A relay node's models, devices and loadings as records: the shapes that a GPU node gives over HTTP. Pure."""

from __future__ import annotations

from typing import Any

from server.nodes import model_key
from server.placement import POOL
from wire.messages_stats import DeviceRecord, ModelRecord, ResidentRecord, Stats
from wire.messages_work import Loaded, Phase, Progress

Record = dict[str, Any]
PHASES = {
    Phase.WAITING: "waiting",
    Phase.FETCHING: "fetching",
    Phase.READING: "loading",
    Phase.PLACING: "loading",
    Phase.PREPARING: "loading",
}


def models_record(stats: Stats) -> Record:
    """As GET /api/models: what is in memory with how it is held, then what else could be."""
    residents = {model_key(one.model): one for one in stats.residents}
    known = {model_key(one.name) for one in stats.models}
    models = [_model(one, residents.get(model_key(one.name))) for one in stats.models]
    unlisted = [one for key, one in residents.items() if key not in known]
    return {"models": models + [{"name": one.model, "available": False, **_facts(one)} for one in unlisted]}


def gpu_record(stats: Stats) -> Record:
    """As GET /api/gpu: the GPUs, and what of each device is given away and to whom."""
    gpus = [one for one in stats.devices if one.kind == "cuda"]
    return {
        "gpus": [
            {"index": index, "name": one.name, "total_bytes": one.total_bytes, "free_bytes": one.free_bytes}
            for index, one in enumerate(gpus)
        ],
        "accounts": [_account(one, stats) for one in stats.devices],
    }


def progress_record(model: str, progress: Progress, elapsed_seconds: float) -> Record:
    record: Record = {
        "model": model,
        "status": PHASES.get(progress.phase, "waiting"),
        "elapsed_seconds": round(elapsed_seconds, 1),
    }
    if progress.total:
        record |= {"completed": progress.done, "total": progress.total}
    return record


def loaded_record(loaded: Loaded, stats: Stats, elapsed_seconds: float) -> Record:
    record: Record = {"model": loaded.model, "status": "success", "load_seconds": round(elapsed_seconds, 3)}
    resident = _resident_of(stats, loaded.model)
    if resident is not None:
        record |= {name: value for name, value in _facts(resident).items() if name != "state"}
    dtype = dict(loaded.facts).get("dtype")
    return record | {"context_length": loaded.context_tokens} | ({"dtype": dtype} if isinstance(dtype, str) else {})


def _resident_of(stats: Stats, model: str) -> ResidentRecord | None:
    return next((one for one in stats.residents if model_key(one.model) == model_key(model)), None)


def _model(model: ModelRecord, resident: ResidentRecord | None) -> Record:
    record = {
        "name": model.name,
        "available": True,
        "state": "empty",
        "family": model.family,
        "size_bytes": model.size_bytes,
        "quantisation": model.quantisation,
        "digest": model.digest.removeprefix("sha256:"),
    }
    return record if resident is None else record | _facts(resident)


def _facts(resident: ResidentRecord) -> Record:
    return {
        "state": resident.state,
        "device": resident.device,
        "memory_bytes": resident.device_bytes,
        "weights_bytes": max(0, resident.device_bytes - resident.cache_bytes),
        "cache": {"bytes": resident.cache_bytes},
        "context_length": resident.context_tokens,
        "slots": resident.slots,
        "in_flight": resident.running,
        "idle_seconds_left": resident.seconds_left,
    }


def _account(device: DeviceRecord, stats: Stats) -> Record:
    """A device's name is for people; models and sessions name its kind, with a number where there are several. Models
    of a node that splits them are in the account of all its devices."""
    pooled = any(one.kind == POOL for one in stats.devices)
    on_device = [one for one in stats.residents if (POOL if pooled else one.device.partition(":")[0]) == device.kind]
    models = {
        one.model: {"weights_bytes": max(0, one.device_bytes - one.cache_bytes), "cache_bytes": one.cache_bytes}
        for one in on_device
    }
    return {
        "device": device.kind,
        "name": device.name,
        "budget_bytes": device.total_bytes,
        "used_bytes": device.claimed_bytes,
        "free_bytes": device.free_bytes,
        "models": models,
    }
