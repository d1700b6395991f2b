from __future__ import annotations

import io

from gpu_node.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_line_is_rewritten_and_then_ended() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock)
    progress.bytes("downloading x", 10_000_000, 100_000_000)
    clock.now += 1
    progress.bytes("downloading x", 100_000_000, 100_000_000)
    progress.say("done")
    text = stream.getvalue()
    assert text.startswith("\rdownloading x: 10 of 100 MB (10%)\rdownloading x: 100 of 100 MB (100%)")
    assert text.endswith("\ndone\n")


def test_a_log_gets_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock)
    for _ in range(100):
        clock.now += 0.2
        progress.bytes("downloading x", 1, 2)
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 6
    assert "\r" not in stream.getvalue()


def test_elapsed_work_tells_that_it_began_and_leaves_no_thread() -> None:
    stream = io.StringIO()
    with Progress(stream).elapsed("converting"):
        pass
    assert stream.getvalue() == "converting …\n"
