"""Guards around every test: what a test starts, it ends; what it sets, it unsets.

A task, thread, socket, child process or environment variable that outlives its test fails that test, and so does an
exception that an event loop had to report because nobody awaited it. Wider fixtures (module, session) stand up before
the guards look for the first time, so what they hold is theirs. Nothing is patched: the guards only look.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
from pytest_asyncio import is_async_test

# Read by the programs under test; a value from the developer's shell would change what a test sees.
SETTINGS_WITHOUT_PREFIX = frozenset({"ENABLE_LRU_CACHE", "HOST", "PORT"})
# Threads that libraries start once for the whole process and never end: tqdm's monitor and torch's compile pool.
LIBRARY_THREADS = ("tqdm", "torch", "TMonitor", "pydevd", "SubprocPool", "Thread-auto_conversion")
# A thread or child that was told to end may need a moment on a busy machine; one that was not told never ends.
GRACE_SECONDS = 20.0
# So may a task that ends when the system tells of the other end of its socket.
TASK_GRACE_SECONDS = 5.0
LOOK_SECONDS = 0.01

# Files that take half a minute each begin first, or one worker has them left while the others have nothing to do. xdist
# would sort by the number of tests, so scripts/test tells it not to.
LONG = ("phone_setup/", "integration/", "server/test_dashboard", "scripts/", "gpu_node/test_node", "gpu_node/test_rel")

# Examples are the same in every run, however long one takes on a busy machine. Who looks for others says so:
# `scripts/test --hypothesis-profile=search`.
SLOW = (hypothesis.HealthCheck.too_slow,)
for _name, _repeats in (("same", True), ("search", False)):
    hypothesis.settings.register_profile(
        _name, derandomize=_repeats, database=None, deadline=None, suppress_health_check=SLOW
    )
hypothesis.settings.load_profile("same")


def pytest_configure() -> None:
    # A shell starts what it runs in the background deaf to Ctrl-C, and every child would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until all tests are collected: nothing of them is garbage, and going through them takes seconds
    if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out already: read before anything imports torch
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: not item.path.relative_to(here).as_posix().startswith(LONG))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # as _settled_heap does after each file
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> Iterator[None]:
    """What outlives a module (torch's classes, the collected tests) is not gone through again by any later collection.

    With torch imported a full one takes half a second, and many tests ask for one so that they see what was dropped.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    """One browser for a file of tests, which run in the loop that drives it (`pytest.mark.asyncio(loop_scope=...)`)."""
    from tests.fakes import browser  # where there is none, this skips

    async with browser.launched() as made:
        yield made


@pytest.fixture
def unused_tcp_port() -> int:
    """pytest-asyncio's own may be handed out to another program before the test has used it."""
    from tests.fakes.ports import free_port

    return free_port()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whatever ran before, torch draws the same numbers in a test: none is one in ten thousand beyond its tolerance."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _clean_environment() -> Iterator[None]:
    """No setting from outside reaches a test, and none set by a test reaches the next one."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("POTLUCK_", "VRM_", "UVICORN_")) or name in SETTINGS_WITHOUT_PREFIX:
            del os.environ[name]
    yield
    after = dict(os.environ)
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if after.get(name) != value})


@pytest.fixture(autouse=True)
def _nothing_left_running(request: pytest.FixtureRequest, _clean_environment: None) -> Iterator[None]:
    """Threads, sockets and children that the test leaves behind fail it. Ends after the event loop is closed."""
    pool = ThreadPoolExecutor()  # a loop that outlives the test has its threads for this one from here
    if is_async_test(request.node) and request.node._loop_scope != "function":
        runner: asyncio.Runner = request.getfixturevalue(f"_{request.node._loop_scope}_scoped_runner")
        runner.get_loop().set_default_executor(pool)
    threads, sockets, children = set(threading.enumerate()), _open_sockets(), _children()
    yield
    pool.shutdown()
    left = _remaining(lambda: _new_threads(threads))
    if left:
        pytest.fail(f"threads left running: {left}", pytrace=False)
    left = _remaining(lambda: sorted(_children() - children))
    if left:
        pytest.fail(f"child processes left: {[_command_of(pid) for pid in left]}", pytrace=False)
    left = sorted(_open_sockets() - sockets)
    if left:
        with warnings.catch_warnings():  # told here, so that the next test does not stumble over it
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        pytest.fail(f"sockets left open: {[_socket_name(descriptor) for descriptor in left]}", pytrace=False)


@pytest.fixture(autouse=True)
def _no_tasks_left(request: pytest.FixtureRequest, _nothing_left_running: None) -> Iterator[None]:
    """Tasks that outlive an async test and its fixtures fail it, as do errors that only the loop has seen."""
    if not is_async_test(request.node):
        yield
        return
    # Asked for here so that it is closed after this guard has looked: closing cancels every task without a word.
    runner: asyncio.Runner = request.getfixturevalue(f"_{request.node._loop_scope}_scoped_runner")
    loop = runner.get_loop()
    before = asyncio.all_tasks(loop)
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    yield
    runner.run(_turns_of_the_loop(before))
    left = [task for task in asyncio.all_tasks(loop) - before if not task.done()]
    loop.set_exception_handler(None)
    if left:
        pytest.fail(f"tasks left running: {[_task_name(task) for task in left]}", pytrace=False)
    if reported:
        pytest.fail("the event loop reported: " + "; ".join(map(_report_text, reported)), pytrace=False)


async def _turns_of_the_loop(before: set[asyncio.Task[Any]]) -> None:
    """Let cancelled tasks take their last step and closed transports close."""
    kept = {*before, asyncio.current_task()}
    for turn in range(10 + int(TASK_GRACE_SECONDS / LOOK_SECONDS)):
        await asyncio.sleep(0 if turn < 10 else LOOK_SECONDS)
        if not asyncio.all_tasks() - kept:
            return


def _remaining(look: Callable[[], list[Any]]) -> list[Any]:
    """What `look` still finds after a grace time; costs nothing when it finds nothing."""
    deadline = time.monotonic() + GRACE_SECONDS
    found = look()
    while found and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        found = look()
    return found


def _new_threads(before: set[threading.Thread]) -> list[str]:
    new = [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]
    return [f"{type(thread).__name__} {thread.name}" for thread in new if not _is_library_thread(thread)]


def _is_library_thread(thread: threading.Thread) -> bool:
    words = (thread.name, type(thread).__name__, type(thread).__module__)
    return any(word.startswith(LIBRARY_THREADS) for word in words)


def _open_sockets() -> set[tuple[int, int]]:
    """Descriptor and inode of each open socket: a number used anew is another socket."""
    found = set()
    for entry in os.listdir("/dev/fd" if sys.platform == "darwin" else "/proc/self/fd"):
        try:
            status = os.fstat(int(entry))
        except OSError:  # the descriptor of the listing itself, closed by now
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.add((int(entry), status.st_ino))
    return found


def _socket_name(entry: tuple[int, int]) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{entry[0]}")
    except OSError:
        return f"descriptor {entry[0]} (collected as garbage)"


def _children() -> set[int]:
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # the usual case, and a hundred times cheaper than looking for them
            return set()
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
        return {int(pid) for pid in listed.stdout.split()}
    found: set[int] = set()
    for task in tasks.iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except OSError:  # the thread ended between the listing and the reading
            continue
    return found


def _command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return f"{pid} {words or '(ended, never waited for)'}"


def _task_name(task: asyncio.Task[Any]) -> str:
    return f"{task.get_name()} {getattr(task.get_coro(), '__qualname__', task.get_coro())}"


def _report_text(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context['message']}" + (f" ({type(error).__name__}: {error})" if error else "")
