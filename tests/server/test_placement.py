"""Where a model is loaded: the order of the nodes, whose memory counts, and what a node is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.errors import NodeUnknown, RequestInvalid
from server.nodes import ModelKey
from server.placement import Candidate, entry_of, fittest_first, free_bytes, may_load, node_named
from tests.server.scripted_nodes import node_of, report_of

GPU_REPORT = report_of(slots=32, gpu_node=True)


def gpu(name: str, **facts: Any) -> Candidate:
    last_resort = facts.pop("last_resort", False)
    node = node_of(name, GPU_REPORT, last_resort=last_resort)
    return Candidate(node, "m", **{"needed_bytes": 600, "free_bytes": 1000, **facts})


def order(*candidates: Candidate) -> list[str]:
    forwards = [candidate.node.name for candidate in fittest_first(candidates)]
    assert forwards == [candidate.node.name for candidate in fittest_first(candidates[::-1])]
    return forwards


def test_the_fittest_holds_it_has_room_has_the_files_and_the_least_to_do():
    assert order(
        gpu("embedded", last_resort=True, resident=True),
        gpu("full", free_bytes=599),
        gpu("untold", free_bytes=None),
        Candidate(node_of("phone"), "m"),
        gpu("must-fetch", fetched=False),
        gpu("busy", in_flight=3),
        gpu("roomy", in_flight=1, free_bytes=2000),
        gpu("just-enough", in_flight=1, free_bytes=600),
        gpu("holder", resident=True, in_flight=9, free_bytes=0),
    ) == ["holder", "roomy", "just-enough", "busy", "must-fetch", "phone", "full", "untold", "embedded"]


def test_a_size_that_nobody_knows_fits_everywhere():
    assert order(gpu("b", needed_bytes=0, free_bytes=5), gpu("a", free_bytes=5)) == ["b", "a"]


ACCOUNTS = {"accounts": [{"device": "cpu", "free_bytes": 9}, {"device": "cuda:0", "free_bytes": 5}, {"device": "x"}, 7]}


def test_the_roomiest_device_counts_or_the_one_that_is_asked_for():
    assert free_bytes(ACCOUNTS, None) == 9
    assert free_bytes(ACCOUNTS, "cuda") == 5
    assert free_bytes(ACCOUNTS, "cpu") == 9
    assert free_bytes({"accounts": [{"device": "cpu", "free_bytes": 9}]}, "cuda") is None


@pytest.mark.parametrize("told", [{}, {"accounts": None}, {"accounts": "x"}, {"accounts": [{"free_bytes": "9"}, None]}])
def test_rubbish_tells_no_memory(told: dict[str, Any]):
    assert free_bytes(told, None) is None


def test_a_models_record_is_found_by_any_spelling():
    listing = {"models": [3, {"name": 4}, {"name": "Qwen:latest", "size_bytes": 2}]}
    assert entry_of(listing, ModelKey("qwen")) == {"name": "Qwen:latest", "size_bytes": 2}
    assert entry_of(listing, ModelKey("other")) is None
    assert entry_of({"models": {}}, ModelKey("qwen")) is None


def test_an_owner_who_names_models_lets_no_other_be_loaded():
    node = node_of("a", models=("Qwen:1b",))
    assert may_load(node, ModelKey("qwen:1b"))
    assert not may_load(node, ModelKey("other"))
    assert may_load(node_of("b"), ModelKey("other"))


def test_a_node_goes_by_its_id_before_its_name():
    nodes = [node_of("kitchen"), node_of("Attic")]
    assert node_named("attic ", nodes).name == "Attic"
    with pytest.raises(NodeUnknown, match="node 'kitchn' not found") as unknown:
        node_named("kitchn", nodes)
    assert unknown.value.hint == "did you mean kitchen?"
    with pytest.raises(NodeUnknown):
        node_named("x" * 10_000, nodes)


def test_a_name_that_several_nodes_have_is_no_name():
    twins = [node_of("a"), node_of("b")]
    twins = [replace(node, spec=replace(node.spec, name="twin")) for node in twins]
    with pytest.raises(RequestInvalid) as several:
        node_named("twin", twins)
    assert several.value.hint == "say which one by its id: a, b"
    assert node_named("b", twins).id == "b"


def test_a_node_that_splits_its_models_has_room_in_all_its_devices_together():
    pooled = {"accounts": [{"device": "devices", "free_bytes": 3}, {"device": "cpu", "free_bytes": 9}]}
    assert [free_bytes(pooled, device) for device in (None, "cuda", "cpu")] == [3, 3, 3]
