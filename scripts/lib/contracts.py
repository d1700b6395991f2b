"""Hold the import contracts of .importlinter; exits with 1 where one is broken.

Called by its function, since the command of the same name breaks when the folder with its environment is moved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    status: int = lint_imports(no_cache=True, no_logo=True)
    return 0 if status == EXIT_STATUS_SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
