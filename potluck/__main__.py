"""The `potluck` command, also as `python -m potluck`."""

from __future__ import annotations

import io
import sys

STOPPED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line. A terminal that cannot show a character gets a question mark, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        from potluck.cli import app

        app(prog_name="potluck")
    except KeyboardInterrupt:  # while it is still being imported; later each command has its own way to stop
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
