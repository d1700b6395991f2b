"""The event loop that the programs run on, for measurements that start one themselves."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[object, object, Result]) -> Result:
    """On uvloop, but for Windows, which has none."""
    if sys.platform == "win32":
        import asyncio

        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)
