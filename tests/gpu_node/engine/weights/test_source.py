"""Files are read in bounded pieces, and what is wrong with them is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_node.engine.weights.source import STAGING_BYTES, WeightFile, check_target, rows_a_piece
from gpu_node.errors import ModelError


def test_bytes_come_from_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(100)))
    with WeightFile(tmp_path / "w") as file:
        target = torch.zeros(3, dtype=torch.float32)
        file.read_bytes(10, target)
        assert target.view(torch.uint8).tolist() == list(range(10, 22))
        assert file.staged(50, 5, torch.device("cpu")).tolist() == [50, 51, 52, 53, 54]
        with pytest.raises(ModelError, match="w ends in the middle of its weights"):
            file.staged(98, 5, torch.device("cpu"))


def test_staging_is_one_buffer_that_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(STAGING_BYTES * 2))
    with WeightFile(tmp_path / "w") as file:
        first = file.staged(0, STAGING_BYTES, torch.device("cpu"))
        second = file.staged(5, 100, torch.device("cpu"))
        assert first.data_ptr() == second.data_ptr()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        WeightFile(tmp_path / "none")


def test_pieces_are_whole_rows() -> None:
    assert rows_a_piece(STAGING_BYTES // 4) == 4
    assert rows_a_piece(STAGING_BYTES * 3) == 1, "a row longer than the buffer is a piece of its own"


def test_targets_are_checked() -> None:
    check_target("m", "w", (2, 3), torch.empty(2, 3))
    with pytest.raises(ModelError, match=r"m: w has the shape \[2, 3\], and the model wants \[3, 2\]"):
        check_target("m", "w", (2, 3), torch.empty(3, 2))
