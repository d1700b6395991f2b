from __future__ import annotations

import pytest

from gpu_node.errors import UsageError
from gpu_node.libraries import require_libraries, share_the_cpu


def test_what_is_missing_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(UsageError, match=r"the GPU node needs torch, transformers; install with: pip install"):
        require_libraries(lambda name: None if name in ("torch", "transformers") else object())


def test_nothing_is_said_when_all_is_there() -> None:
    require_libraries(lambda name: object())
    require_libraries()


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    environ: dict[str, str] = {}
    share_the_cpu(environ)
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE"}
    own = {"OMP_WAIT_POLICY": "ACTIVE"}
    share_the_cpu(own)
    assert own == {"OMP_WAIT_POLICY": "ACTIVE"}
