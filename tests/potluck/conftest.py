from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.potluck.real_node import RealNode, real_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """One for all tests of a run that want a real one."""
    with real_node(tmp_path_factory.mktemp("node")) as made:
        yield made
