"""Whether a process that says nothing is at work all the same, as the system sees it.

A call that keeps the interpreter's lock, or a machine with no processor to spare, silences the beats of a process that
is well; one that was stopped, or whose threads all wait for each other, runs nothing. Linux tells by the states of its
threads (proc(5)); elsewhere nothing is known. Must not know links or workers.
"""

from __future__ import annotations

from pathlib import Path

# Running or waiting for a processor, and waiting for a disk, which memory that was swapped out comes from.
AT_WORK = frozenset("RD")


def is_at_work(pid: int | None, root: Path = Path("/proc")) -> bool:
    """Some thread of it computes, or would if it could. False also where nothing is known."""
    if pid is None:
        return False
    try:
        return any(_state(thread / "stat") in AT_WORK for thread in (root / str(pid) / "task").iterdir())
    except OSError:  # it is gone, or this is no Linux
        return False


def _state(path: Path) -> str:
    try:
        # The name before it is in parentheses, and may have some itself.
        return path.read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # that thread has just ended
        return ""
