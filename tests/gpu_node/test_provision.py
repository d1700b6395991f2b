"""What a model's way into memory does to the process besides."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_node.provision import import_for_good


@pytest.fixture
def heavy(tmp_path: Path) -> Iterator[str]:
    """A module of many objects that nobody has imported yet."""
    (tmp_path / "heavy_for_a_test.py").write_text("OBJECTS = [[number] for number in range(5000)]\n")
    sys.path.insert(0, str(tmp_path))
    yield "heavy_for_a_test"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("heavy_for_a_test", None)
    gc.unfreeze()


def test_what_is_imported_for_good_is_not_looked_through_again(heavy: str) -> None:
    import_for_good(heavy)
    objects = sys.modules[heavy].OBJECTS
    watched = {id(one) for one in gc.get_objects()}
    assert gc.get_freeze_count() > 5000 and not any(id(one) in watched for one in objects)


def test_what_comes_later_is_still_collected(heavy: str) -> None:
    import_for_good(heavy)
    later = [[number] for number in range(10)]
    import_for_good(heavy)  # a second model: what lives by then may be garbage one day
    watched = {id(one) for one in gc.get_objects()}
    assert all(id(one) in watched for one in later)
