from __future__ import annotations

import subprocess
import sys

import pytest

from gpu_node.errors import UsageError
from gpu_node.libraries import NEEDED, require_libraries, share_the_cpu

# As in an install for phones only: none of them can be imported.
WITHOUT_THEM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NEEDED}))
runpy.run_module("gpu_node", None, "__main__")
"""


def test_what_is_missing_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(UsageError, match=r"the GPU node needs torch, transformers; install with: pip install"):
        require_libraries(lambda name: None if name in ("torch", "transformers") else object())


def test_an_install_for_phones_only_gets_one_sentence() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT_THEM], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("the GPU node needs torch, transformers")
    assert ended.stderr.count("\n") == 1


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
