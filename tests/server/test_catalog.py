"""What a request's model means in this fleet."""

from __future__ import annotations

import pytest

from server.catalog import MAX_NAME_CHARS, nearest, resolve, union
from server.errors import ModelNotFound
from server.nodes import ModelKey, NodeStatus
from tests.server.scripted_nodes import node_of, report_of

FLEET = [
    node_of("a", report_of(["qwen2.5:1.5b", "llama3:latest"])),
    node_of("b", report_of(["gemma:2b"]), NodeStatus.SILENT),
]


@pytest.mark.parametrize("name", [None, "", "auto", " AUTO "])
def test_auto_means_each_nodes_own(name: str | None) -> None:
    assert resolve(name, FLEET, {}) is None


@pytest.mark.parametrize("name", ["llama3", "LLAMA3:latest", "Llama3"])
def test_latest_and_case_do_not_matter(name: str) -> None:
    assert resolve(name, FLEET, {}) == "llama3"


def test_a_silent_nodes_model_is_known() -> None:
    assert resolve("gemma:2b", FLEET, {}) == "gemma:2b"


def test_aliases() -> None:
    """Aliases in settings, so that `gpt-4o-mini` can mean `qwen2.5:1.5b`."""
    aliases = {"GPT-4o-mini": "Qwen2.5:1.5B", "any": "auto", "lost": "nowhere:1b"}
    assert resolve("gpt-4o-mini", FLEET, aliases) == "qwen2.5:1.5b"
    assert resolve("any", FLEET, aliases) is None
    with pytest.raises(ModelNotFound, match="nowhere:1b"):
        resolve("lost", FLEET, aliases)


def test_a_real_model_goes_before_an_alias_of_the_same_name() -> None:
    assert resolve("llama3", FLEET, {"llama3": "gemma:2b"}) == "llama3"


def test_aliases_do_not_go_round_in_circles() -> None:
    with pytest.raises(ModelNotFound):
        resolve("a", FLEET, {"a": "b", "b": "a"})


def test_a_near_miss_is_answered_with_the_nearest_names() -> None:
    """A near miss is answered 404 with the nearest names."""
    with pytest.raises(ModelNotFound) as caught:
        resolve("quen2.5:1.5b", FLEET, {"gpt-4o-mini": "auto"})
    assert caught.value.http_status == 404
    assert caught.value.nearest[0] == "qwen2.5:1.5b"
    assert "qwen2.5:1.5b" in str(caught.value.hint)
    with pytest.raises(ModelNotFound) as caught:
        resolve("gpt-4o-min", FLEET, {"gpt-4o-mini": "auto"})
    assert caught.value.nearest == ("gpt-4o-mini",)


def test_what_is_too_long_to_be_a_name_is_compared_with_nothing() -> None:
    wanted = "qwen2.5:1.5b" + "x" * 1_000_000
    with pytest.raises(ModelNotFound) as caught:
        resolve(wanted, FLEET, {})
    assert caught.value.nearest == () and len(caught.value.message) < 2 * MAX_NAME_CHARS
    long = "/models/" + "m" * MAX_NAME_CHARS
    assert resolve(long, [node_of("a", report_of([long]))], {}) == long
    assert nearest("m", ["m:" + "x" * 1_000_000, "m:1b"]) == ("m:1b",)


def test_another_size_of_the_same_model_is_near() -> None:
    assert nearest("phi", ["phi:a-very-long-tag-that-looks-like-nothing", "llama3"]) == (
        "phi:a-very-long-tag-that-looks-like-nothing",
    )
    assert len(nearest("m", [f"m:{size}b" for size in range(9)])) == 3
    assert nearest("zzzz", ["llama3"]) == ()


def test_the_union_lists_what_can_be_served_once_and_by_name() -> None:
    """Union of the fleet; one dead node never stalls or fills a model list."""
    twin = node_of("c", report_of(["llama3", "alpha"], digest="other"))
    copies = union([*FLEET, twin])
    assert list(copies) == ["alpha", "llama3", "qwen2.5:1.5b"]
    assert copies[ModelKey("llama3")].digest == "d1-llama3:latest"
