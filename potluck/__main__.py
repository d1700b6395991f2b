"""The `potluck` command, also as `python -m potluck`."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line. A terminal that cannot show a character gets a question mark, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    from potluck.cli import app

    app(prog_name="potluck")


if __name__ == "__main__":
    main()
