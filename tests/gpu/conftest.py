"""These tests want a CUDA device. Without one each is skipped, and says so."""

import importlib.util

import pytest


def reason() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "there is no CUDA device on this machine"


def pytest_collection_modifyitems(items):
    missing = reason()
    if missing:
        for item in items:
            if "/tests/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture
def device():
    return "cuda"
