"""No name that is accepted can lead out of the folder it is joined to, or mean another file elsewhere."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.names import fault_of_files, fault_of_name


@pytest.mark.parametrize("name", ["a", "model.gguf", "org/name/model-00001-of-00002.safetensors", "1_B", "a+b=c"])
def test_usual_names_are_accepted(name: str) -> None:
    assert fault_of_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../a", "a/../b", "/a", "a/", "a//b", ".a", "a/.b", "a.", "a ", "a b", "a\\b", "c:a",
        "a\0", "a\n",
        "nul", "CON.txt", "a/Lpt1", "ä", "~", "-a", "a" * 129, "a/" * 8 + "a", "/".join(["a" * 100] * 6), "%2e", "a*",
    ],
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    assert fault_of_name(name)


@given(st.text(st.sampled_from("ab./\\:~\0"), max_size=12))
def test_an_accepted_name_stays_within(name: str) -> None:
    if fault_of_name(name) is None:
        joined = posixpath.normpath(posixpath.join("/store", name))
        assert joined == f"/store/{name}"


@pytest.mark.parametrize(
    ("files", "fine"),
    [(["a", "b/a"], True), (["a", "A"], False), (["a/b", "a"], False), (["a", "a/b/c"], False), ([], True)],
)
def test_files_of_a_model_do_not_stand_in_each_others_way(files: list[str], fine: bool) -> None:
    assert (fault_of_files(files) is None) is fine
