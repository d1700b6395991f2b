from __future__ import annotations

import subprocess
import sys

import pytest

from gpu_node.engine.products.kernels.availability import (
    available,
    converts_halves,
    dots_of,
    native_target,
    reason,
)

WITHOUT_LLVMLITE = """
import sys
sys.modules["llvmlite"] = None
from gpu_node.engine.products.kernels import available, reason
assert not available()
assert reason() == "llvmlite is not installed."
assert "torch" not in sys.modules
"""


def test_available_says_the_same_as_its_reason():
    assert available() == (reason() == "")


def test_without_llvmlite_the_package_says_so():
    subprocess.run([sys.executable, "-c", WITHOUT_LLVMLITE], check=True)


@pytest.mark.parametrize(
    ("features", "dots"),
    [
        (set(), "portable"),
        ({"sse4.2", "avx"}, "portable"),
        ({"avx2", "fma"}, "avx2"),
        ({"avx2", "avxvnni"}, "vnni"),
        ({"avx2", "avx512vnni"}, "avx2"),
        ({"avx2", "avx512vnni", "avx512vl"}, "vnni"),
    ],
)
def test_the_best_instructions_that_a_processor_has(features, dots):
    assert dots_of(frozenset(features)) == dots


@pytest.mark.parametrize(
    ("machine", "features", "can"),
    [
        ("x86_64", {"sse4.2", "avx", "f16c"}, True),
        ("AMD64", {"sse4.2"}, False),  # what many virtual machines show by default
        ("aarch64", set(), True),
    ],
)
def test_processors_that_cannot_convert_halves_have_no_kernels(machine, features, can):
    assert converts_halves(machine, frozenset(features)) is can


def test_this_machine_is_described():
    if not available():
        pytest.skip(reason())
    target = native_target()
    assert target.triple
    assert target.processor
