"""Exit with 0 if every pin of the named requirements files is installed already: then pip has nothing to do or say.

Runs in a fresh environment, so only the standard library is there.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def is_met(pin: str) -> bool:
    name, _, version = pin.partition(";")[0].strip().partition("==")
    try:
        # A build of torch for one kind of machine says so behind a plus: the same release.
        return metadata.version(name).partition("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def main(files: list[str]) -> int:
    lines = (line.strip() for file in files for line in Path(file).read_text(encoding="utf-8").splitlines())
    return 0 if all(is_met(line) for line in lines if line and not line.startswith(("#", "-"))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
