from __future__ import annotations

import subprocess
import sys

CODE = """
import asyncio, sys
from gpu_node.parent import watch_parent

async def main():
    stopped = asyncio.Event()
    watch_parent(asyncio.get_running_loop(), stopped.set)
    print("watching", flush=True)
    await stopped.wait()
    print("stopped", flush=True)
    if sys.argv[1] == "hangs":
        await asyncio.sleep(600)

asyncio.run(main())
"""


def ended(how: str) -> tuple[int, str]:
    with subprocess.Popen(
        [sys.executable, "-c", CODE, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        process.stdin.write("words are not the end\n")
        process.stdin.close()
        process.stdin = None
        out, _ = process.communicate(timeout=30)
        return process.returncode, out


def test_the_end_of_stdin_stops_the_loop() -> None:
    assert ended("obeys") == (0, "stopped\n")


def test_a_process_that_does_not_obey_ends_all_the_same() -> None:
    assert ended("hangs") == (0, "stopped\n")
