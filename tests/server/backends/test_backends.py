from __future__ import annotations

import subprocess
import sys
from typing import get_args

from server.backends import KINDS, Backends
from server.nodes import NodeKind


async def test_each_kind_is_made_once_over_one_pool():
    backends = Backends({"KEY": "x"})
    assert set(backends) == set(KINDS) and len(backends) == len(KINDS)
    assert set(KINDS) == set(get_args(NodeKind))
    for kind in KINDS:
        assert backends[kind] is backends[kind]
    await backends.aclose()


def test_a_kind_that_nobody_has_is_not_imported():
    code = (
        "import sys, server.backends as b; assert 'server.backends.openai' not in sys.modules;"
        "assert 'server.backends.ollama' not in sys.modules; b.Backends({})['ollama'];"
        "assert 'server.backends.ollama' in sys.modules; assert 'server.backends.openai' not in sys.modules;"
        "assert 'server.backends.relay' not in sys.modules and 'transport.driver' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
