"""Offers on their way into the store: cut anywhere, taken up again, checked, and never half a model."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from gpu_node.errors import DigestMismatch, NodeStopping, RequestError, StoreRefused
from gpu_node.pushed import NOTE_FILE, PushedModels
from gpu_node.staging import STALE_SECONDS, Incoming, Staging, StagingRules, key_of
from tests.gpu_node.offers import Files, chunk, chunks_of, files_of, offer_of

PLENTY = 1 << 50


class Store:
    """A store on a disk of any size, at any time."""

    def __init__(self, folder: Path) -> None:
        self.pushed = PushedModels(folder / "pushed")
        self.free, self.now = PLENTY, 0.0

    def staging(self, **rules: float) -> Staging:
        """Anew, as after a restart."""
        return Staging(self.pushed, StagingRules(**rules), lambda: self.now, lambda _: self.free)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(scope="module")
def files(tiny_folder: Path) -> Files:
    return {name: data for name, data in files_of(tiny_folder).items() if not name.endswith(".py")}


def send(incoming: Incoming, files: Files) -> list[str]:
    for one in chunks_of(files, incoming.held):
        incoming.write(one)
    return incoming.finish()


def names(store: Store) -> list[str]:
    return [source.name for source in store.pushed.sources()]


def test_a_model_comes_whole(store: Store, files: Files) -> None:
    incoming = store.staging().begin(offer_of("Anna/Tiny", files))
    assert incoming.held == (0,) * len(files) and not incoming.stored
    assert send(incoming, files) == []
    assert names(store) == ["anna/tiny"]
    folder = store.pushed.find("anna/tiny").path
    kept = files_of(folder)
    assert kept.pop(NOTE_FILE)
    assert kept == files
    assert list(store.pushed.staging.iterdir()) == []


def test_an_offer_of_what_is_here_is_done_at_once(store: Store, files: Files) -> None:
    send(store.staging().begin(offer_of("tiny", files)), files)
    again = store.staging().begin(offer_of("Tiny", files))
    assert again.stored and again.held == tuple(map(len, files.values()))
    assert again.finish() == []
    with pytest.raises(RequestError, match="whole already"):
        again.write(chunk(0, 0, b"x"))
    again.close()
    os.truncate(store.pushed.find("tiny").path / "config.json", 3)
    damaged = store.staging().begin(offer_of("tiny", files))
    assert not damaged.stored
    assert send(damaged, files) == []
    assert (store.pushed.find("tiny").path / "config.json").read_bytes() == files["config.json"]


def test_cut_anywhere_it_goes_on_after_a_restart(store: Store, files: Files) -> None:
    """One chunk a life: a restart at every point."""
    offer, lives = offer_of("tiny", files), 0
    while True:
        incoming = store.staging().begin(offer)
        rest = list(chunks_of(files, incoming.held, 1 << 17))
        if not rest:
            break
        incoming.write(rest[0])
        incoming.close()
        assert names(store) == []
        lives += 1
    assert lives == sum(-(-len(data) // (1 << 17)) for data in files.values())
    assert incoming.finish() == []
    assert names(store) == ["tiny"]


def test_what_is_not_whole_is_no_model(store: Store, files: Files) -> None:
    incoming = store.staging().begin(offer_of("tiny", files))
    incoming.write(chunk(0, 0, next(iter(files.values()))))
    assert incoming.finish() == list(files)[1:]
    assert names(store) == []
    assert send(incoming, files) == [], "the same one may go on"


def test_a_file_that_was_damaged_comes_again(store: Store, files: Files) -> None:
    offer = offer_of("tiny", files)
    first = store.staging().begin(offer)
    weights = list(files).index("model.safetensors")
    for one in chunks_of(files):
        first.write(one)
    first.close()
    path = store.pushed.staging / key_of(offer) / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    second = store.staging().begin(offer)
    assert second.finish() == ["model.safetensors"]
    assert second.held[weights] == 0
    assert send(second, files) == []


def test_what_comes_whole_and_is_no_model_is_told_and_not_kept(store: Store, files: Files) -> None:
    bad = dict(files) | {"model.safetensors": b"no weights"}
    with pytest.raises(StoreRefused, match="no model that this node can read: tiny/model"):
        send(store.staging().begin(offer_of("tiny", bad)), bad)
    assert names(store) == []
    assert list(store.pushed.staging.iterdir()) == []


def test_wrong_chunks_change_nothing(store: Store, files: Files) -> None:
    incoming = store.staging().begin(offer_of("tiny", files))
    one = next(chunks_of(files))
    with pytest.raises(DigestMismatch):
        incoming.write(type(one)(one.file, one.offset, b"\0" * 32, one.data))
    with pytest.raises(RequestError, match="no file 99"):
        incoming.write(chunk(99, 0, b"x"))
    assert incoming.held == (0,) * len(files)
    assert send(incoming, files) == []


def test_one_works_on_an_offer(store: Store, files: Files) -> None:
    offer = offer_of("tiny", files)
    first = store.staging().begin(offer)
    with pytest.raises(StoreRefused, match="pushed by somebody else"):
        store.staging().begin(offer)
    first.close()
    store.staging().begin(offer).close()


def test_what_another_model_holds_does_not_come_again(store: Store, files: Files) -> None:
    send(store.staging().begin(offer_of("tiny", files)), files)
    changed = dict(files) | {"README.md": b"new"}
    incoming = store.staging().begin(offer_of("other", changed))
    assert {name: held for name, held in zip(changed, incoming.held, strict=True) if not held} == {"README.md": 0}
    assert send(incoming, changed) == []
    assert names(store) == ["other", "tiny"]
    same_name = store.staging().begin(offer_of("tiny", changed))
    assert send(same_name, changed) == []
    assert (store.pushed.find("tiny").path / "README.md").read_bytes() == b"new"


def test_a_full_disk_is_told_with_its_numbers(store: Store, files: Files) -> None:
    total = sum(map(len, files.values()))
    store.free = total + 99
    with pytest.raises(StoreRefused) as caught:
        store.staging(reserve_bytes=100).begin(offer_of("tiny", files))
    assert (caught.value.free_bytes, caught.value.needed_bytes) == (total - 1, total)
    store.free = total + 100
    staging = store.staging(reserve_bytes=100)
    first = staging.begin(offer_of("tiny", files))
    with pytest.raises(StoreRefused):
        staging.begin(offer_of("other", files))
    first.close()
    staging.begin(offer_of("other", files)).close()


def test_all_pushed_models_together_have_a_limit(store: Store, files: Files) -> None:
    total = sum(map(len, files.values()))
    send(store.staging(limit_bytes=total).begin(offer_of("tiny", files)), files)
    other = dict(files) | {"config.json": files["config.json"] + b" "}
    with pytest.raises(StoreRefused):
        store.staging(limit_bytes=total).begin(offer_of("other", other))
    replacing = store.staging(limit_bytes=2 * total + 1).begin(offer_of("tiny", other))
    assert send(replacing, other) == []


def test_half_models_go_when_they_are_old_or_room_is_short(store: Store, files: Files) -> None:
    offer = offer_of("old", files)
    store.now = 1e10
    incoming = store.staging().begin(offer)
    incoming.write(next(chunks_of(files)))
    incoming.close()
    place = store.pushed.staging / key_of(offer)
    os.utime(place, (0, 1e10))
    store.now += STALE_SECONDS - 1
    store.staging().begin(offer_of("tiny", files)).close()
    assert place.exists()
    store.free = 0
    with pytest.raises(StoreRefused):
        store.staging().begin(offer_of("tiny", files))
    assert not place.exists(), "an hour is long when room is short"


def test_what_somebody_works_on_stays(store: Store, files: Files) -> None:
    offer = offer_of("tiny", files)
    working = store.staging().begin(offer)
    store.now = 1e12
    store.staging().sweep(0)
    assert send(working, files) == []


def test_links_in_the_store_are_refused(store: Store, files: Files, tmp_path: Path) -> None:
    offer = offer_of("tiny", files)
    outside = tmp_path / "outside"
    outside.mkdir()
    place = store.pushed.staging / key_of(offer)
    place.mkdir(parents=True)
    (place / "config.json").symlink_to(outside / "x")
    with pytest.raises(StoreRefused, match="the store cannot be used"):
        store.staging().begin(offer)
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(outside)
    with pytest.raises(StoreRefused):
        store.staging().begin(offer)
    assert list(outside.iterdir()) == []


def test_strangers_in_the_folder_do_not_become_part_of_the_model(store: Store, files: Files, tmp_path: Path) -> None:
    offer = offer_of("tiny", files)
    begun = store.staging().begin(offer)
    begun.write(next(chunks_of(files)))
    begun.close()
    place = store.pushed.staging / key_of(offer)
    (place / "potluck.json").write_text('{"weights": "/etc/passwd"}')
    (place / "sub").symlink_to(tmp_path)
    assert send(store.staging().begin(offer), files) == []
    assert set(files_of(store.pushed.find("tiny").path)) == {*files, NOTE_FILE}


def test_checking_ends_when_the_node_does(store: Store, files: Files) -> None:
    offer = offer_of("tiny", files)
    first = store.staging().begin(offer)
    for one in chunks_of(files):
        first.write(one)
    first.close()
    second = store.staging().begin(offer)
    second.stopped = True
    with pytest.raises(NodeStopping):
        second.finish()
    second.close()
    assert names(store) == []


def test_refused_offers_leave_nothing(store: Store) -> None:
    with pytest.raises(StoreRefused, match="can run any code"):
        store.staging().begin(offer_of("tiny", {"a.gguf": b"x", "pytorch_model.bin": b"x"}))
    assert not store.pushed.folder.exists()


def test_offers_of_which_nothing_came_leave_nothing(store: Store, files: Files) -> None:
    store.staging().begin(offer_of("tiny", files)).close()
    store.free = 0
    with pytest.raises(StoreRefused, match="MB more"):
        store.staging().begin(offer_of("tiny", files))
    assert list(store.pushed.staging.iterdir()) == []
    store.free = PLENTY
    assert send(store.staging().begin(offer_of("tiny", files)), files) == []
    more = {**files, "README.md": b"new"}
    taken = store.staging().begin(offer_of("other", more))
    assert sum(taken.held) == sum(map(len, files.values())), "of another model"
    taken.close()
    assert list(store.pushed.staging.iterdir()) == [], "and there it still is"
    assert (store.pushed.find("tiny").path / "config.json").read_bytes() == files["config.json"]


def test_offers_at_once_do_not_take_the_same_room(store: Store, files: Files) -> None:
    total = sum(map(len, files.values()))
    together = threading.Barrier(2)

    def free(_: Path) -> int:
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # both look before either has taken
        return total

    staging = Staging(store.pushed, StagingRules(reserve_bytes=0), free=free)

    def begin(model: str) -> Incoming | None:
        with suppress(StoreRefused):
            return staging.begin(offer_of(model, files))
        return None

    with ThreadPoolExecutor(2) as threads:
        begun = [one for one in threads.map(begin, ["one", "two"]) if one is not None]
    for one in begun:
        one.close()
    assert len(begun) == 1


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path: Path, files: Files) -> None:
    (tmp_path / "pushed").write_text("a file where the folder belongs")
    with pytest.raises(StoreRefused, match="the store cannot be used: "):
        Store(tmp_path).staging().begin(offer_of("tiny", files))
