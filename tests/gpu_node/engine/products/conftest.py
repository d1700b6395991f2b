"""Kernels are compiled once for all tests: that takes seconds."""

import pytest

from gpu_node.engine.products.kernels import available, reason


@pytest.fixture(scope="session")
def product_kernels(tmp_path_factory):
    if not available():
        pytest.skip(reason())
    from gpu_node.engine.products.kernels.kernels import open_kernels

    opened = open_kernels(tmp_path_factory.mktemp("kernels"))
    yield opened
    opened.close()
