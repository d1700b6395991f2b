"""Following the fleet file: changes become events, mistakes keep the fleet. Real files, events of the real system."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.phones_entry import spec_of
from server.phones_watch import LOOK_EVERY_SECONDS, FleetFile, changes
from server.registry import NodeListed, NodeUnlisted, RegistryEvent
from tests.fakes.manual_clock import ManualClock

A, B = spec_of({"host": "a"}), spec_of({"host": "b"})


class Followed:
    """A fleet file and the events it gave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.events: list[RegistryEvent] = []
        self.news = asyncio.Event()
        self.file = FleetFile(path, self.emit, lambda: self.now)

    def emit(self, event: RegistryEvent) -> None:
        self.events.append(event)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def until_error(self, present: bool) -> None:
        async with asyncio.timeout(60):
            while (self.file.state.error is not None) is not present:  # noqa: ASYNC110  # an error gives no event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Followed]:
    followed = Followed(path)
    followed.file.reload()
    task = asyncio.create_task(followed.file.watch())
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_changed_between_two_lists():
    heavier = spec_of({"host": "a", "weight": 2})
    assert changes((), (A, B), 1.0) == [NodeListed(A, 1.0), NodeListed(B, 1.0)]
    assert changes((A, B), (B,), 1.0) == [NodeUnlisted(A.id, 1.0)]
    assert changes((A,), (heavier,), 1.0) == [NodeListed(heavier, 1.0)]
    assert changes((A, B), (B, A), 1.0) == []


def test_a_reading_is_remembered_and_told_once(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a"}]')
    followed = Followed(path)
    assert followed.file.state.loaded_at is None
    followed.file.reload()
    followed.file.reload()
    assert followed.events == [NodeListed(A, 1000.0)]
    assert followed.file.state.specs == (A,) and followed.file.state.loaded_at == 1000.0


def test_a_broken_file_keeps_the_fleet_and_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a"}]')
    followed = Followed(path)
    followed.file.reload()
    path.write_text('[{"host": "a"},\n {"hots": "b"}]')
    followed.now = 2000.0
    followed.file.reload()
    state = followed.file.state
    assert (state.line, state.column, state.specs, state.loaded_at) == (2, 3, (A,), 1000.0)
    assert state.error is not None and state.error.endswith("did you mean 'host'?") and "line" not in state.error
    assert len(followed.events) == 1
    assert "did you mean 'host'?" in caplog.text
    path.write_text('[{"host": "b"}]')
    followed.file.reload()
    assert followed.file.state.error is None and followed.file.state.line is None
    assert followed.events[1:] == [NodeUnlisted(A.id, 2000.0), NodeListed(B, 2000.0)]


@pytest.mark.parametrize("text", ["[" * 600 + "]" * 600, '[{"host": "a", "port": ' + "1" * 5000 + "}]"])
def test_nothing_in_a_file_raises(tmp_path: Path, text: str):
    path = tmp_path / "phones.json"
    path.write_text(text)
    followed = Followed(path)
    followed.file.reload()
    assert followed.file.state.error is not None and followed.events == []


def test_a_file_that_is_taken_away_means_no_nodes(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a"}]')
    followed = Followed(path)
    followed.file.reload()
    path.unlink()
    followed.file.reload()
    assert followed.events[1:] == [NodeUnlisted(A.id, 1000.0)] and followed.file.state.error is None


async def test_a_change_is_noticed(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text("[]")
    async with watching(path) as followed:
        path.write_text('[{"host": "a"}]')
        await followed.until(lambda: followed.events == [NodeListed(A, 1000.0)])


async def test_an_editor_that_replaces_the_file_is_noticed_each_time(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a"}]')
    async with watching(path) as followed:
        for text, count in (('[{"host": "a"}, {"host": "b"}]', 2), ('[{"host": "b"}]', 3)):
            new = tmp_path / ".phones.json.swp"
            new.write_text(text)
            os.replace(new, path)
            await followed.until(lambda count=count: len(followed.events) == count)  # type: ignore[misc]
        assert followed.events == [NodeListed(A, 1000.0), NodeListed(B, 1000.0), NodeUnlisted(A.id, 1000.0)]


async def test_a_file_that_appears_later_is_noticed(tmp_path: Path):
    path = tmp_path / "phones.json"
    async with watching(path) as followed:
        path.write_text('[{"host": "a"}]')
        await followed.until(lambda: bool(followed.events))


async def test_a_link_to_another_folder_is_followed(tmp_path: Path):
    real = tmp_path / "real" / "fleet.json"
    real.parent.mkdir()
    real.write_text("[]")
    link = tmp_path / "here" / "phones.json"
    link.parent.mkdir()
    link.symlink_to(real)
    async with watching(link) as followed:
        real.write_text('[{"host": "a"}]')
        await followed.until(lambda: bool(followed.events))


async def test_breaking_and_mending_while_it_is_watched(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a"}]')
    async with watching(path) as followed:
        path.write_text('[{"host": "a"')
        await followed.until_error(True)
        assert followed.file.state.specs == (A,)
        path.write_text('[{"host": "b"}]')
        await followed.until_error(False)
        assert followed.events[-2:] == [NodeUnlisted(A.id, 1000.0), NodeListed(B, 1000.0)]


async def test_a_change_between_the_first_reading_and_the_watch_is_not_missed(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text("[]")
    followed = Followed(path)
    followed.file.reload()
    path.write_text('[{"host": "a"}]')
    task = asyncio.create_task(followed.file.watch())
    await followed.until(lambda: bool(followed.events))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("problem", [OSError(28, "OS file watch limit reached"), RuntimeError("no watcher left")])
async def test_a_system_without_watches_is_no_reason_not_to_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, problem: Exception
):
    path = tmp_path / "phones.json"
    path.write_text("[]")
    followed, clock = Followed(path), ManualClock()

    async def refused(folders: Sequence[Path]) -> AsyncIterator[object]:
        raise problem
        yield

    followed.file = FleetFile(path, followed.emit, lambda: followed.now, refused, clock.sleep)
    followed.file.reload()
    task = asyncio.create_task(followed.file.watch())
    await clock.advance(10.0)
    path.write_text('[{"host": "a"}]')
    await clock.advance(LOOK_EVERY_SECONDS)
    assert followed.events == [NodeListed(A, 1000.0)] and not task.done()
    assert caplog.text.count(str(problem)) == 1  # said once, not at each look
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
