"""A file that comes in chunks: grows in order, believes nothing, and is where it should be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_node.errors import DigestMismatch, RequestError, StoreRefused
from gpu_node.growing_file import GrowingFile
from tests.gpu_node.offers import chunk
from wire.messages_work import Chunk

DATA = bytes(range(256)) * 4
DIGEST = hashlib.sha256(DATA).digest()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def growing(folder: int, name: str = "sub/model.gguf") -> GrowingFile:
    return GrowingFile(folder, name, len(DATA), DIGEST)


def silent(_: int) -> None:
    pass


def test_chunks_make_a_file(folder: int, tmp_path: Path) -> None:
    file = growing(folder)
    assert file.held == 0
    assert [file.write(chunk(0, at, DATA[at : at + 100])) for at in range(0, 1024, 100)][-1] == 1024
    assert file.whole(silent)
    file.sync()
    assert (tmp_path / "sub/model.gguf").read_bytes() == DATA


@pytest.mark.parametrize("cut", [0, 1, 99, 100, 101, 1023, 1024])
def test_it_goes_on_where_it_was_cut(folder: int, tmp_path: Path, cut: int) -> None:
    first = growing(folder)
    first.write(chunk(0, 0, DATA[:cut]))
    first.close()
    second = growing(folder)
    assert second.held == cut
    second.write(chunk(0, cut, DATA[cut:]))
    told: list[int] = []
    assert second.whole(told.append)
    assert sum(told) == (1024 if cut else 0), "what was here is read once more"
    second.close()
    assert (tmp_path / "sub/model.gguf").read_bytes() == DATA


def test_only_what_goes_on_is_taken(folder: int) -> None:
    file = growing(folder)
    file.write(chunk(0, 0, DATA[:100]))
    for wrong in (chunk(0, 0, DATA[:100]), chunk(0, 50, DATA[50:150]), chunk(0, 101, DATA[101:102])):
        with pytest.raises(RequestError, match="goes on at 100"):
            file.write(wrong)
    with pytest.raises(RequestError, match="has 1024 bytes"):
        file.write(chunk(0, 100, DATA[100:] + b"x"))
    with pytest.raises(DigestMismatch):
        file.write(Chunk(0, 100, hashlib.sha256(b"other").digest(), DATA[100:200]))
    assert file.write(chunk(0, 100, b"")) == 100
    assert file.write(chunk(0, 100, DATA[100:])) == 1024
    assert file.whole(silent)
    file.close()


def test_wrong_bytes_are_found_at_the_end_and_come_again(folder: int, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/model.gguf").write_bytes(b"\0" * 100)  # as after a loss of power
    file = growing(folder)
    file.write(chunk(0, 100, DATA[100:]))
    assert not file.whole(silent)
    assert file.held == 0
    file.write(chunk(0, 0, DATA))
    assert file.whole(silent)
    file.close()


def test_what_is_too_large_to_be_a_beginning_goes(folder: int, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/model.gguf").write_bytes(DATA + b"x")
    assert growing(folder).held == 0


def test_a_file_that_is_cut_meanwhile_is_not_believed(folder: int, tmp_path: Path) -> None:
    first = growing(folder)
    first.write(chunk(0, 0, DATA[:900]))
    first.close()
    file = growing(folder)
    file.write(chunk(0, 900, DATA[900:]))
    os.truncate(tmp_path / "sub/model.gguf", 10)
    assert not file.whole(silent)
    file.close()


def test_links_lead_nowhere(folder: int, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    outside.mkdir()
    inside.mkdir()
    (outside / "precious.gguf").write_bytes(b"precious")
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (inside / "sub").symlink_to(outside)
        with pytest.raises(OSError):
            growing(descriptor, "sub/precious.gguf")
        (inside / "model.gguf").symlink_to(outside / "precious.gguf")
        with pytest.raises(OSError):
            growing(descriptor, "model.gguf")
        os.mkfifo(inside / "pipe.gguf")
        with pytest.raises(StoreRefused, match="no file"):
            growing(descriptor, "pipe.gguf")
        for name in ("../outside/precious.gguf", "/etc/x.gguf", "a//b.gguf", "./x.gguf", "a\\b.gguf"):
            with pytest.raises(StoreRefused, match="no name of a file"):
                growing(descriptor, name)
    finally:
        os.close(descriptor)
    assert (outside / "precious.gguf").read_bytes() == b"precious"
    assert [entry.name for entry in outside.iterdir()] == ["precious.gguf"]


def test_a_linked_whole_file_is_never_written(folder: int, tmp_path: Path) -> None:
    original = tmp_path / "original.gguf"
    original.write_bytes(b"\0" * len(DATA))  # the right size, and damaged
    GrowingFile.link(folder, "model.gguf", original)
    file = growing(folder, "model.gguf")
    assert file.held == len(DATA)
    assert not file.whole(silent)
    file.write(chunk(0, 0, DATA))
    assert file.whole(silent)
    file.close()
    assert original.read_bytes() == b"\0" * len(DATA)
    os.unlink(tmp_path / "model.gguf")
    os.link(original, tmp_path / "model.gguf")
    longer = GrowingFile(folder, "model.gguf", 5000, DIGEST)
    assert longer.held == 0, "another's file is no beginning of ours"
