"""Who is silent and works, and who does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_node.pipeline.vital_signs import is_at_work

SECONDS = 60.0


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True); {code}"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


def settles(pid: int, at_work: bool) -> bool:
    end = time.monotonic() + SECONDS
    while is_at_work(pid) != at_work:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5) is Linux's")
def test_who_computes_is_at_work_until_it_is_stopped() -> None:
    with process("exec('while True: pass')") as child:
        assert settles(child.pid, True)
        os.kill(child.pid, signal.SIGSTOP)
        assert settles(child.pid, False)


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5) is Linux's")
def test_who_waits_is_not() -> None:
    with process("import time; time.sleep(100)") as child:
        assert settles(child.pid, False)


def test_one_thread_is_enough(tmp_path: Path) -> None:
    for thread, state in ((7, "S"), (8, "D"), (9, "")):
        folder = tmp_path / "7" / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{thread} (a ) b) {state}" + " 1 2 3" * bool(state))
    assert is_at_work(7, tmp_path)
    (tmp_path / "7" / "task" / "8" / "stat").write_text("8 (a R b) T 1")
    assert not is_at_work(7, tmp_path)
    (tmp_path / "7" / "task" / "9" / "stat").unlink()
    assert not is_at_work(7, tmp_path) and not is_at_work(6, tmp_path) and not is_at_work(None)
