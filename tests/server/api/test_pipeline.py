"""GET /api/pipeline/status: each GPU node in its own words, and who did not answer."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.pipeline import PIPELINE_PATH
from server.errors import NodeBusy
from tests.server.api.gateway import get
from tests.server.api.models_stand import Stand

SPLIT: dict[str, Any] = {
    "models": {"m:1b": {"split": True, "stages": [{"stage": 0, "device": "cpu:0"}]}},
    "devices": [{"device": "cpu:0", "state": "present"}],
    "events": [{"at": 1.5, "device": "cpu:0", "what": "listed", "detail": ""}],
}


async def test_every_gpu_node_tells_its_splits():
    stand = Stand({("alpha", PIPELINE_PATH): {**SPLIT, "more": "unread"}, ("beta", PIPELINE_PATH): {"models": {}}})
    told = (await get(stand.made.app, PIPELINE_PATH)).json()
    assert told == {
        "nodes": [
            {"node": "alpha", "id": "alpha", **SPLIT},
            {"node": "beta", "id": "beta", "models": {}, "devices": [], "events": []},
        ],
        "silent": [],
    }


@pytest.mark.parametrize(
    "answer", [{}, {"models": []}, {"models": {"m": 1}}, {**SPLIT, "devices": {}}, {**SPLIT, "events": [1]}]
)
async def test_who_does_not_answer_or_not_so_is_named(answer: dict[str, Any]):
    stand = Stand({("alpha", PIPELINE_PATH): NodeBusy("stopping"), ("beta", PIPELINE_PATH): answer})
    told = (await get(stand.made.app, PIPELINE_PATH)).json()
    assert told["nodes"] == []
    assert [(one["node"], one["error"]) for one in told["silent"]] == [
        ("alpha", "busy: stopping"),
        ("beta", "it tells its splits in an unknown way"),
    ]


async def test_it_wants_the_key():
    stand = Stand({}, api_keys="anna:s3cret")
    assert (await get(stand.made.app, PIPELINE_PATH)).status == 401
