from __future__ import annotations

import subprocess
import sys

import pytest

from gpu_node.engine.products.kernels.availability import available, dots_of, native_target, reason

WITHOUT_LLVMLITE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llvmlite":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.path_importer_cache.clear()
from gpu_node.engine.products import kernels
from gpu_node.engine.products.kernels import weights, tensors
assert "llvmlite" not in sys.modules
"""


def test_available_says_the_same_as_its_reason():
    assert available() == (reason() == "")


def test_the_package_and_weights_are_imported_without_llvmlite():
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


def test_this_machine_is_described():
    if not available():
        pytest.skip(reason())
    target = native_target()
    assert target.triple
    assert target.processor
