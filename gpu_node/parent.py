"""Ends this process with its parent: the parent holds the other end of stdin, and every way to die closes it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable

# The parent is gone: nobody waits for a clean end longer than this.
GRACE_SECONDS = 0.7


def watch_parent(loop: asyncio.AbstractEventLoop, stop: Callable[[], None], descriptor: int = 0) -> None:
    """Call `stop` in the loop when `descriptor` reaches its end, and end the process soon after in any case."""

    def watch() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass  # closed on this side: the same thing
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)
        time.sleep(GRACE_SECONDS)
        leave_now(0)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()


def leave_now(code: int) -> None:
    """End without waiting for threads that compute."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
