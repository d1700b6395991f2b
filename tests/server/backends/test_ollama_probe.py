"""What the listings of real and of odd nodes mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.backends.ollama_probe import MOST_SLOTS, renders, report_of
from tests.server.backends.played_node import recording


def body(version: str, name: str) -> Any:
    response = recording(version, name)["response"]
    return json.loads(response.get("body") or "".join(chunk["text"] for chunk in response["chunks"]))


@pytest.mark.parametrize(("version", "can_render"), [("0.6", False), ("0.24", True), ("0.33", True)])
def test_the_recorded_versions(version: str, can_render: bool):
    report = report_of(body(version, "version"), body(version, "tags"), body(version, "ps-loaded"))
    assert report.version.startswith(version)
    assert report.renders is can_render
    assert "smollm2:135m" in {model.name for model in report.models}
    assert all(len(model.digest) == 64 and model.size_bytes > 0 for model in report.models)
    assert [model.name for model in report.resident] == ["smollm2:135m"]
    assert report.resident[0].context_length == (None if version == "0.6" else 4096)
    assert report.resident[0].expires_at is not None
    assert (report.slots, report.continues_assistant) == (None, False)
    assert report.models[0].listing["details"]["format"] == "gguf"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.11.5", True),
        ("0.11.4", False),
        ("0.12", True),
        ("1.0.0", True),
        ("v0.30.1", True),
        ("0.33.0-rc2", True),
        ("0.5.1-dirty", False),
        ("0.0.0", False),
        ("", False),
        ("nightly", False),
    ],
)
def test_rendering_is_known_from_the_version(version: str, expected: bool):
    assert renders(version) is expected


def test_our_own_node_tells_its_slots_and_that_it_continues():
    version = {"version": "0.1.0", "potluck": {"slots": 4, "continues_assistant": True}}
    report = report_of(version, {"models": []}, {"models": []})
    assert (report.slots, report.continues_assistant, report.renders) == (4, True, True)


@pytest.mark.parametrize("slots", [0, -1, "4", True, None, 1.5])
def test_slots_that_are_none_are_not_taken(slots: object):
    assert report_of({"version": "1", "potluck": {"slots": slots}}, {"models": []}, None).slots is None


def test_a_node_that_boasts_is_believed_as_far_as_an_owner_would_be():
    assert report_of({"version": "1", "potluck": {"slots": 2**62}}, {"models": []}, None).slots == MOST_SLOTS


def test_a_very_old_node_without_ps_and_version():
    report = report_of(None, {"models": [{"name": "llama2:7b"}]}, None)
    assert (report.version, report.resident, report.renders) == ("", (), False)
    assert report.models[0].digest == ""


def test_null_models_mean_none():
    assert report_of({"version": "0.1.1"}, {"models": None}, {"models": None}).models == ()


@pytest.mark.parametrize(
    "tags", [{"models": 5}, {"models": ["x"]}, {"models": [{"size": 1}]}, {"models": [{"name": 7}]}]
)
def test_a_listing_that_misleads_is_an_error(tags: object):
    with pytest.raises(ValueError):
        report_of({"version": "0.6"}, tags, None)


def test_our_own_node_is_known_by_its_slots_and_a_gateway_is_none():
    def is_gpu_node(version: dict[str, Any]) -> bool:
        return report_of({"version": "0.24.0", **version}, {"models": []}, None).gpu_node

    assert is_gpu_node({"potluck": {"slots": 32, "continues_assistant": True}})
    assert not is_gpu_node({"potluck": {"version": "0.1.0"}}), "a gateway says so of itself"
    assert not is_gpu_node({})
