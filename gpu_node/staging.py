"""Models on their way into the store: files that grow chunk by chunk, and are a model when all their digests are right.

Invariants: what was kept of an offer is found again when the same offer comes, also after a restart; one process and
one caller at a time work on an offer (a lock that dies with its holder); nothing appears under a model's name before
every file of it was checked. Everything here works on the disk: call it in a thread. Must not know frames.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_node.errors import ModelError, NodeStopping, RequestError, StoreRefused
from gpu_node.growing_file import GrowingFile
from gpu_node.model_folder import describe
from gpu_node.model_source import GgufSource
from gpu_node.push_rules import fault_of_offer
from gpu_node.pushed import PushedModels, StoredFile, source_of, sync_folder, write_note
from wire.messages_work import Chunk, Push

# Half a model that nobody has asked for in three days is not coming back.
STALE_SECONDS = 3 * 86_400.0
# When room is short, what was left an hour ago goes first.
SHORT_SECONDS = 3600.0
# A full disk harms everything on the machine, so this much stays free.
RESERVE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class StagingRules:
    limit_bytes: int = 0  # of all pushed models together; 0: what the disk has
    reserve_bytes: int = RESERVE_BYTES
    stale_seconds: float = STALE_SECONDS


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Staging:
    def __init__(
        self,
        pushed: PushedModels,
        rules: StagingRules = StagingRules(),
        now: Callable[[], float] = time.time,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """`now` is compared with times of files."""
        self._pushed, self._rules, self._now, self._free = pushed, rules, now, free
        self._owed: dict[Path, int] = {}  # what open offers will still take
        self._lock = threading.Lock()

    def begin(self, offer: Push) -> Incoming:
        """Raises `StoreRefused`, also while another process works on the same offer."""
        fault = fault_of_offer(offer)
        if fault:
            raise StoreRefused(fault)
        with _plain_disk_errors(self._pushed.folder):
            if self._is_stored(offer):
                return Incoming(offer, None, self)
            self._pushed.staging.mkdir(parents=True, exist_ok=True)
            self.sweep(self._rules.stale_seconds)
            return self._open(offer)

    def sweep(self, age_seconds: float) -> None:
        """Remove what nobody works on and nothing was added to for so long."""
        if not self._pushed.staging.is_dir():
            return
        for folder in self._pushed.staging.iterdir():
            if folder.is_symlink() or not folder.is_dir():
                continue
            with suppress(OSError), _locked(folder) as mine:  # another node may be sweeping as well
                if mine and self._now() - folder.stat().st_mtime >= age_seconds:
                    shutil.rmtree(folder, ignore_errors=True)

    def settle(self, folder: Path, owed_bytes: int | None) -> None:
        """What the offer in `folder` still takes; None: it is over."""
        with self._lock:
            if owed_bytes is None:
                self._owed.pop(folder, None)
            else:
                self._owed[folder] = owed_bytes

    def publish(self, made: Path, offer: Push) -> None:
        self._pushed.publish(made, offer.model)

    def _open(self, offer: Push) -> Incoming:
        folder = self._pushed.staging / key_of(offer)
        descriptor = _entered(folder)
        if descriptor is None:
            raise StoreRefused(f"{offer.model} is being pushed by somebody else; try again later")
        place = _Place(folder, descriptor, [])
        try:
            self._adopt(offer, descriptor)
            place.files += (GrowingFile(descriptor, file.name, file.size, file.digest) for file in offer.files)
            self._take_room(folder, offer, sum(file.size - file.held for file in place.files))
        except BaseException:
            place.leave()
            raise
        return Incoming(offer, place, self)

    def _is_stored(self, offer: Push) -> bool:
        offered = {(file.name, file.size, file.digest.hex()) for file in offer.files}
        stored = self._pushed.files_of(offer.model)
        source = self._pushed.find(offer.model)
        if {(file.name, file.size, file.digest) for file in stored} != offered or source is None:
            return False
        folder = source.path.parent if isinstance(source, GgufSource) else source.path
        return all(_size_of(folder / file.name) == file.size for file in stored)

    def _adopt(self, offer: Push, descriptor: int) -> None:
        """What some model here holds already need not come again; it is checked as if it had come."""
        wanted = {(file.size, file.digest.hex()): file.name for file in offer.files if file.size}
        for path, stored in self._pushed.stored():
            name = wanted.get((stored.size, stored.digest))
            if name is not None and _size_of(path) == stored.size:
                with suppress(OSError):  # another file system, or one without links: then it comes again
                    GrowingFile.link(descriptor, name, path)

    def _take_room(self, folder: Path, offer: Push, needed: int) -> None:
        with self._lock:  # what is found free is owed before anybody else looks
            if needed > self._free_for(folder, offer):
                self.sweep(SHORT_SECONDS)
            free = self._free_for(folder, offer)
            if needed <= free:
                self._owed[folder] = needed
                return
        told = f"{offer.model} needs {needed / 1e6:.0f} MB more, and the store has room for {max(free, 0) / 1e6:.0f}"
        raise StoreRefused(told, free_bytes=max(free, 0), needed_bytes=needed)

    def _free_for(self, folder: Path, offer: Push) -> int:
        others = sum(owed for other, owed in self._owed.items() if other != folder)
        disk = self._free(self._pushed.folder) - self._rules.reserve_bytes - others
        if not self._rules.limit_bytes:
            return disk
        replaced = sum(file.size for file in self._pushed.files_of(offer.model))
        stored = sum(file.size for _, file in self._pushed.stored()) - replaced
        return min(disk, self._rules.limit_bytes - stored - _bytes_beneath(self._pushed.staging) - others)


@dataclass(slots=True)
class _Place:
    folder: Path
    descriptor: int  # of the folder; holds the lock
    files: list[GrowingFile]

    def leave(self) -> None:
        """What came stays; an offer of which nothing came leaves nothing, or offers alone would fill the disk."""
        for file in self.files:
            file.close()
        with suppress(OSError):
            os.utime(self.descriptor)
            if _is_at(self.descriptor, self.folder) and not _has_come(self.folder):
                shutil.rmtree(self.folder)
        os.close(self.descriptor)


class Incoming:
    """One offer, from the first look at what is here until it is a model or is left for later. One call at a time."""

    def __init__(self, offer: Push, place: _Place | None, staging: Staging) -> None:
        """Without a place: all of it is in the store already."""
        self.offer, self._place, self._staging = offer, place, staging
        self._last: GrowingFile | None = None  # the one whose descriptor is open
        self.stopped = False  # set from outside: checking large files ends soon
        self.checked_bytes = 0

    @property
    def stored(self) -> bool:
        return self._place is None

    @property
    def held(self) -> tuple[int, ...]:
        if self._place is None:
            return tuple(file.size for file in self.offer.files)
        return tuple(file.held for file in self._place.files)

    def write(self, chunk: Chunk) -> int:
        """Returns how much of the file is held now. Raises `RequestError`, `DigestMismatch`, `StoreRefused`."""
        if chunk.file >= len(self.offer.files):
            raise RequestError(f"the offer has no file {chunk.file}", field="file")
        if self._place is None:
            raise RequestError(f"{self.offer.model} is whole already", field="offset")
        with _plain_disk_errors(self._place.folder):
            file = self._place.files[chunk.file]
            if self._last is not None and self._last is not file:
                self._last.close()
            self._last = file
            held = file.write(chunk)
        self._staging.settle(self._place.folder, sum(file.size - file.held for file in self._place.files))
        return held

    def finish(self) -> list[str]:
        """Checks every file and makes the model appear; returns the names of files that have to come again, if any.

        Raises `StoreRefused` for files that are whole and no model, `NodeStopping` when it was stopped."""
        if self._place is None:
            return []
        with _plain_disk_errors(self._place.folder):
            wrong = [file.name for file in self._place.files if not file.whole(self._checked)]
            if wrong:
                return wrong
            self._publish(self._place)
        return []

    def close(self) -> None:
        """What came stays for the same offer."""
        if self._place is None:
            return
        place, self._place = self._place, None
        place.leave()
        self._staging.settle(place.folder, None)

    def _checked(self, count: int) -> None:
        self.checked_bytes += count
        if self.stopped:
            raise NodeStopping()

    def _publish(self, place: _Place) -> None:
        _remove_strangers(place)
        _refuse_what_is_no_model(place.folder, self.offer.model)
        for file in place.files:
            file.sync()
        files = tuple(StoredFile(file.name, file.size, file.digest.hex()) for file in self.offer.files)
        write_note(place.folder, self.offer.model, files)
        sync_folder(place.folder)
        self._staging.publish(place.folder, self.offer)
        self.close()


def key_of(offer: Push) -> str:
    """The same offer has the same place, after whatever restart; another one has another."""
    digest = hashlib.sha256(offer.model.lower().encode())
    for file in sorted(offer.files, key=lambda file: file.name):
        digest.update(f"\0{file.name}\0{file.size}\0".encode() + file.digest)
    return digest.hexdigest()[:32]


def _refuse_what_is_no_model(folder: Path, model: str) -> None:
    source = source_of(folder)
    try:
        if source is None:
            raise ModelError("it holds no model")
        describe(source.path)
    except (ModelError, UnicodeDecodeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).replace(str(folder), model)
        raise StoreRefused(f"{model} came whole, and is no model that this node can read: {reason}") from error


def _remove_strangers(place: _Place) -> None:
    """What lies in the folder and was not offered: nobody has checked it."""
    wanted = {file.name for file in place.files}
    for parent, folders, names in os.walk(place.folder):
        here = Path(parent)
        for name in [*names, *(name for name in folders if (here / name).is_symlink())]:
            if (here / name).relative_to(place.folder).as_posix() not in wanted:
                (here / name).unlink()


def _size_of(path: Path) -> int:
    """-1 for what is no plain file."""
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else -1


def _bytes_beneath(folder: Path) -> int:
    return sum(max(_size_of(Path(parent, name)), 0) for parent, _, names in os.walk(folder) for name in names)


def _has_come(folder: Path) -> bool:
    """Whether a byte lies in it that is not in some model of the store as well."""
    for parent, _, names in os.walk(folder):
        for name in names:
            found = Path(parent, name).lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size and found.st_nlink == 1:
                return True
    return False


def _entered(folder: Path) -> int | None:
    """A descriptor of the folder, made where it is missing, that holds its lock; None when somebody else does."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        is_mine = _try_lock(descriptor)
        if is_mine and _is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)
        if not is_mine:
            return None
        # Whoever had the lock has taken the folder away.


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _plain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreRefused("the disk of the store is full", free_bytes=0) from error
        raise StoreRefused(f"the store cannot be used: {error.strerror or error}") from error
