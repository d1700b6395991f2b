"""One file of an offer: as much of it as has come, and the digest of that.

Invariants: it only grows, by chunks in order whose digest was right; it is a plain file of ours beneath the folder it
was made in, on a way without links; what was there before this run is read once more before the whole is believed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpu_node.errors import DigestMismatch, RequestError, StoreRefused
from wire.messages_work import Chunk

# Read at once while checking: the disk is kept busy, and who wants to stop waits for no more than this.
PIECE_BYTES = 4 << 20
_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe that somebody has put there must not make us wait


class GrowingFile:
    def __init__(self, folder: int, name: str, size: int, digest: bytes) -> None:
        """`folder` is an open descriptor, and stays its owner's. What lies there is kept if it can be a beginning.

        Raises OSError, `StoreRefused` where something else lies in the way."""
        self.name, self.size = name, size
        self._folder, self._digest = folder, digest
        self._hash, self._hashed = hashlib.sha256(), 0
        self._descriptor = -1
        self.held = self._found()

    @staticmethod
    def link(folder: int, name: str, path: Path) -> None:
        """`path`, a whole file, lies here as well, where nothing does yet."""
        with _parent(folder, name) as (parent, last):
            os.link(path, last, dst_dir_fd=parent, follow_symlinks=False)

    def write(self, chunk: Chunk) -> int:
        """Returns what is held now. Raises `RequestError` where it does not go on there, `DigestMismatch`."""
        if chunk.offset != self.held:
            told = f"{self.name} goes on at {self.held}, and the chunk begins at {chunk.offset}"
            raise RequestError(told, field="offset")
        end = chunk.offset + len(chunk.data)
        if end > self.size:
            raise RequestError(f"{self.name} has {self.size} bytes, and the chunk ends at {end}", field="data")
        if hashlib.sha256(chunk.data).digest() != chunk.digest:
            raise DigestMismatch(f"a chunk of {self.name} at {chunk.offset} is not what its digest says")
        if chunk.data:
            self._append(chunk.data)
        return self.held

    def whole(self, told: Callable[[int], None]) -> bool:
        """Whether all of it has come and is right; if it is wrong it is emptied. `told` gets the bytes as they go."""
        if self.held != self.size:
            return False
        self._hash_what_is_held(told)
        self.close()
        if self._hash.digest() == self._digest:
            return True
        self._remove()
        self._hash, self._hashed = hashlib.sha256(), 0
        self.held = self._found()
        return False

    def sync(self) -> None:
        os.fsync(self._open())
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, data: bytes | memoryview) -> None:
        descriptor = self._open()
        if self._hashed == self.held:  # else it is read when the whole is checked
            self._hash.update(data)
            self._hashed += len(data)
        view, offset = memoryview(data), self.held
        try:
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, self.held)
            self._hash, self._hashed = hashlib.sha256(), 0
            raise
        self.held = offset

    def _hash_what_is_held(self, told: Callable[[int], None]) -> None:
        descriptor = self._open()
        while self._hashed < self.held:
            piece = os.pread(descriptor, min(PIECE_BYTES, self.held - self._hashed), self._hashed)
            if not piece:
                return  # somebody has cut it: its digest says so
            self._hash.update(piece)
            self._hashed += len(piece)
            told(len(piece))

    def _found(self) -> int:
        """Bytes that lie here already; makes an empty file where nothing does."""
        with _parent(self._folder, self.name) as (parent, last):
            descriptor = os.open(last, os.O_RDWR | os.O_CREAT | _PLAIN, 0o644, dir_fd=parent)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StoreRefused(f"something that is no file lies in the store where {self.name} belongs")
        is_ours = found.st_size == self.size or (found.st_size < self.size and found.st_nlink == 1)
        if is_ours:
            return found.st_size
        self._remove()
        return self._found()

    def _remove(self) -> None:
        with _parent(self._folder, self.name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def _open(self) -> int:
        if self._descriptor < 0:
            with _parent(self._folder, self.name) as (parent, last):
                self._descriptor = os.open(last, os.O_RDWR | _PLAIN, dir_fd=parent)
        return self._descriptor


@contextmanager
def _parent(folder: int, name: str) -> Iterator[tuple[int, str]]:
    """The folder that `name` lies in, made where it is missing and entered step by step, and the last part of it.

    Raises OSError for a link on the way."""
    *steps, last = name.split("/")
    if any(part in ("", ".", "..") for part in (*steps, last)) or "\0" in name or "\\" in name:
        raise StoreRefused(f"{name!r} is no name of a file")
    here = os.dup(folder)
    try:
        for step in steps:
            with suppress(FileExistsError):
                os.mkdir(step, dir_fd=here)
            inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        yield here, last
    finally:
        os.close(here)
