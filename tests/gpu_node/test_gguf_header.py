"""Headers of real files are read, everything else is one sentence, and no length is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_node.errors import ModelError
from gpu_node.gguf_header import MAX_ENTRIES, MAX_STRING_BYTES, read_gguf_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file_of(tmp_path: Path, *entries: bytes, version: int = 3, count: int | None = None) -> Path:
    path = tmp_path / "made.gguf"
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", version, 0, len(entries) if count is None else count) + b"".join(entries)
    )
    return path


def test_a_real_file(tiny_gguf: Path) -> None:
    header = read_gguf_header(tiny_gguf)
    assert (header.architecture, header.quantisation, header.pre_tokenizer) == ("llama", "F32", "smollm")
    assert header.values["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in header.values


def test_every_kind_of_value(tmp_path: Path) -> None:
    header = read_gguf_header(
        file_of(
            tmp_path,
            text("general.architecture") + struct.pack("<I", 8) + text("qwen2"),
            text("skipped") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bb"),
            text("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<iii", 1, 2, 3),
            text("flag") + struct.pack("<I?", 7, True),
            text("general.file_type") + struct.pack("<II", 4, 15),
        )
    )
    assert (header.architecture, header.quantisation, header.values["flag"]) == ("qwen2", "Q4_K_M", True)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (text("x") + struct.pack("<I", 99), "unknown type 99"),
        (text("x") + struct.pack("<IIQ", 9, 8, 1 << 40), "array of"),
        (struct.pack("<Q", MAX_STRING_BYTES + 1), "a text of"),
        (text("x") + struct.pack("<I", 8) + struct.pack("<Q", 5) + b"ab", "ends too early"),
    ],
)
def test_lengths_and_types_are_not_believed(tmp_path: Path, entry: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        read_gguf_header(file_of(tmp_path, entry))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        read_gguf_header(tmp_path / "x")
    with pytest.raises(ModelError, match="version 9"):
        read_gguf_header(file_of(tmp_path, version=9))
    with pytest.raises(ModelError, match="claims"):
        read_gguf_header(file_of(tmp_path, count=MAX_ENTRIES + 1))
    with pytest.raises(ModelError, match="cannot be read"):
        read_gguf_header(tmp_path / "missing")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.binary(max_size=80))
def test_random_bytes_give_only_our_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "random").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + data)
    with pytest.raises(ModelError):
        read_gguf_header(tmp_path / "random")
