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
        _run()
    except KeyboardInterrupt:  # while it is still being imported
        sys.exit(STOPPED)


def _run() -> None:
    import typer

    from potluck.cli import app
    from potluck.cli.reports import reporting

    try:
        with reporting():  # for what no command reports itself, such as a disk that is full behind stdout
            app(prog_name="potluck")
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
