"""A file written whole or not at all: made beside its place and renamed onto it, so that no reader meets half of it.

Links are followed and stay. What is in the file, and who may read it, is the caller's business.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

OWNER_ONLY = 0o600


def write_whole(
    path: Path,
    text: str,
    dress: Callable[[int], None],
    wanted: Callable[[], bool] = lambda: True,
    *,
    durable: bool = True,
) -> bool:
    """Replace the file by this text. Raises OSError, and what `dress` and `wanted` raise; then the old file is there.

    `dress` gives the new file, by its descriptor, its mode and owner. `wanted` is asked at the last moment; False: it
    was not, and nothing is replaced. `durable`: it outlasts a power cut from the return on, for some milliseconds more.
    """
    target = Path(os.path.realpath(path))
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # for its owner only
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            dress(file.fileno())
            if durable:
                os.fsync(file.fileno())
        replaces = wanted()
        if replaces:
            os.replace(temporary, target)
        else:
            os.unlink(temporary)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable and replaces:
        _sync_directory(target.parent)
    return replaces


def for_owner_only(descriptor: int) -> None:
    os.fchmod(descriptor, OWNER_ONLY)


def _sync_directory(path: Path) -> None:
    """So that the new name outlasts the power, too. Some network file systems cannot; written it is all the same."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
