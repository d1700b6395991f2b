"""One library for all tests of kernels, so that each is compiled once. Skipped, visibly, where llvmlite is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gpu_node.engine.products.kernels import availability


@pytest.fixture(scope="session")
def kernels() -> Iterator:
    reason = availability.reason()
    if reason:
        pytest.skip(reason)
    from gpu_node.engine.products.kernels.kernels import open_kernels

    opened = open_kernels()
    assert opened is not None
    yield opened
    opened.close()


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(7)
