"""What a node's /api/version, /api/tags and /api/ps say, as a `ProbeReport`. Pure.

Tolerant of old versions that lack a field, strict about what would mislead routing: a model without a name is no model.
"""

from __future__ import annotations

import re
from typing import Any

from server.nodes import ModelCopy, ProbeReport, ResidentModel

MOST_SLOTS = 10_000  # as in the fleet file: a node that boasts of more must not draw all requests of a fleet
RENDERS_SINCE = (0, 11, 5)  # the first Ollama that answers `_debug_render_only` instead of generating


def report_of(version: Any, tags: Any, ps: Any) -> ProbeReport:
    """The report of three parsed bodies; `ps` is None where the node has no such route.

    Raises ValueError where a body is nothing that Ollama would say.
    """
    own = version.get("potluck") if isinstance(version, dict) else None
    own = own if isinstance(own, dict) else {}
    text = str(version.get("version") or "") if isinstance(version, dict) else ""
    told = own.get("slots")  # a gateway in front of others, which is no node of ours, tells none
    slots = min(told, MOST_SLOTS) if type(told) is int and told > 0 else None
    return ProbeReport(
        version=text,
        models=tuple(model_copy(record) for record in _records(tags)),
        resident=tuple(resident_model(record) for record in _records(ps)) if ps is not None else (),
        slots=slots,
        continues_assistant=own.get("continues_assistant") is True,
        renders=own.get("renders", True) is True if own else renders(text),
        gpu_node=slots is not None,
    )


def renders(version: str) -> bool:
    """Does this Ollama render a prompt without generating? A version that tells nothing does not."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version.strip())
    return found is not None and tuple(int(part or 0) for part in found.groups()) >= RENDERS_SINCE


def model_copy(record: dict[str, Any]) -> ModelCopy:
    size = record.get("size")
    return ModelCopy(
        name=_name(record),
        digest=str(record.get("digest") or "").removeprefix("sha256:"),
        size_bytes=size if type(size) is int else 0,
        listing=record,
    )


def resident_model(record: dict[str, Any]) -> ResidentModel:
    context = record.get("context_length")
    expires = record.get("expires_at")
    return ResidentModel(
        name=_name(record),
        context_length=context if type(context) is int and context > 0 else None,
        expires_at=expires if isinstance(expires, str) else None,
        listing=record,
    )


def _records(body: Any) -> list[dict[str, Any]]:
    models = body.get("models") if isinstance(body, dict) else None
    if models is None and isinstance(body, dict):
        return []  # `{"models": null}`: nothing there
    if not isinstance(models, list) or not all(isinstance(record, dict) for record in models):
        raise ValueError("the list of models is no list of objects")
    return models


def _name(record: dict[str, Any]) -> str:
    name = record.get("name") or record.get("model")
    if not isinstance(name, str):
        raise ValueError("a model without a name")
    return name
