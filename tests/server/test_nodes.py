"""The core types: names, addresses, slots, and what "auto" means at a node."""

from __future__ import annotations

import pytest

from server.nodes import Node, model_key
from tests.server.scripted_nodes import node_of, report_of, spec_of


@pytest.mark.parametrize("name", ["Qwen:1B", " qwen:1b ", "qwen:1b"])
def test_case_does_not_matter(name: str) -> None:
    assert model_key(name) == "qwen:1b"


@pytest.mark.parametrize("name", ["llama3", "llama3:latest", "LLAMA3:Latest"])
def test_latest_does_not_matter(name: str) -> None:
    """`:latest` and case do not matter."""
    assert model_key(name) == "llama3"


def test_addresses() -> None:
    assert spec_of("a", host="10.0.0.7", port=1).address == "10.0.0.7:1"
    assert spec_of("a", host="fe80::1", port=2).address == "[fe80::1]:2"


def test_slots_are_the_owners_word_then_the_nodes_own_then_one() -> None:
    """`max_concurrency` (default: what the node tells, else 1)."""
    told = report_of(slots=4)
    assert node_of("a", told, max_concurrency=2).slots == 2
    assert node_of("a", told).slots == 4
    assert node_of("a").slots == 1
    assert Node(spec_of("a")).slots == 1


def test_its_own_model_is_the_owners_choice_then_what_is_loaded_then_the_first_listed() -> None:
    """`auto` or none means the phone's own model."""
    models = ("one", "two", "three")
    assert node_of("a", report_of(models)).own_model == "one"
    assert node_of("a", report_of(models, resident=["two"])).own_model == "two"
    chosen = node_of("a", report_of(models, resident=["two"]), models=("absent", "Three:latest", "two"))
    assert chosen.own_model == "three"
    assert Node(spec_of("a")).own_model is None


def test_a_loaded_model_that_its_owner_does_not_offer_is_not_its_own() -> None:
    assert node_of("a", report_of(("one", "two"), resident=["one"]), models=("two",)).own_model == "two"
