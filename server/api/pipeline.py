"""GET /api/pipeline/status: how the models of all GPU nodes lie on their devices, each node in its own words.

Nodes are asked at that moment, and those that do not answer in time are named as silent. Only the shape of what they
say is looked at; what it means, the page knows.
"""

from __future__ import annotations

from typing import Any

from server.api.incoming import Incoming
from server.api.services import Services
from server.api.survey import NodeSurvey
from server.backends.operations import Record

PIPELINE_PATH = "/api/pipeline/status"


class PipelineApi:
    def __init__(self, services: Services) -> None:
        self._survey = NodeSurvey(services)

    async def status(self, incoming: Incoming) -> None:
        nodes, silent = [], []
        for heard in await self._survey.of_all(PIPELINE_PATH):
            told = _told(heard.answers.get(PIPELINE_PATH))
            if told is None:
                silent.append({**heard.record(), "error": heard.error or "it tells its splits in an unknown way"})
            else:
                nodes.append({"node": heard.node.name, "id": heard.node.id, **told})
        await incoming.reply.answer_json({"nodes": nodes, "silent": silent})


def _told(answer: Record | None) -> Record | None:
    """Its models by name, its devices and what happened to them; None where that is not what it says."""
    if answer is None:
        return None
    models, devices, events = answer.get("models"), answer.get("devices", []), answer.get("events", [])
    if not isinstance(models, dict) or not all(isinstance(one, dict) for one in models.values()):
        return None
    if not _are_records(devices) or not _are_records(events):
        return None
    return {"models": models, "devices": devices, "events": events}


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
