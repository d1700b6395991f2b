"""A file is replaced whole or stays as it was, and nothing is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.whole_file import OWNER_ONLY, for_owner_only, write_whole


@pytest.mark.parametrize("durable", [True, False])
def test_the_new_text_takes_the_place_of_the_old(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")
    assert write_whole(path, "new", for_owner_only, durable=durable)
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == OWNER_ONLY
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_wanted_at_the_last_moment_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    assert not write_whole(path, "new", for_owner_only, lambda: False)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_who_cannot_dress_it_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(descriptor: int) -> None:
        raise PermissionError(descriptor)

    with pytest.raises(PermissionError):
        write_whole(path, "new", refuse)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_end_is_replaced(tmp_path: Path) -> None:
    link, end = tmp_path / "link", tmp_path / "end"
    end.write_text("old")
    link.symlink_to(end)
    write_whole(link, "new", for_owner_only)
    assert link.is_symlink() and end.read_text() == "new"
