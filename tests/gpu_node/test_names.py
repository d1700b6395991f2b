from __future__ import annotations

import pytest

from gpu_node.names import is_valid, name_of_path, same_model


@pytest.mark.parametrize("name", ["smollm2:135m", "llama3", "org/name", "a/b/c:tag", "Qwen2.5-0.5B"])
def test_names_of_ollama_are_names(name: str) -> None:
    assert is_valid(name)


@pytest.mark.parametrize("name", ["", "../etc/passwd", "a b", "a:b:c", "/a", "a/", "a\n", "-a"])
def test_paths_and_nonsense_are_not(name: str) -> None:
    assert not is_valid(name)


def test_latest_and_case_do_not_matter() -> None:
    assert same_model("Tiny:latest", "tiny")
    assert not same_model("tiny:1b", "tiny")


def test_a_path_gives_a_name_that_clients_can_write() -> None:
    assert name_of_path("Qwen2.5 0.5B (Instruct)") == "qwen2.5-0.5b-instruct"
    assert is_valid(name_of_path("…"))
