"""Headers of real files are read, everything else is one sentence, and no count, length or offset is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_node.errors import ModelError
from gpu_node.gguf_header import KEPT_ITEMS, MAX_ENTRIES, MAX_STRING_BYTES, MAX_TENSORS, read_gguf_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str = "w", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """Innermost dimension first, as the format has it."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    tmp_path: Path,
    *entries: bytes,
    version: int = 3,
    count: int | None = None,
    tensors: tuple[bytes, ...] = (),
    tensor_count: int | None = None,
    data: bytes = bytes(64),
) -> Path:
    path = tmp_path / "made.gguf"
    head = struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if count is None else count,
    )
    body = b"GGUF" + head + b"".join(entries) + b"".join(tensors)
    path.write_bytes(body + bytes(-len(body) % 32) + data)
    return path


def test_a_real_file(tiny_gguf: Path) -> None:
    header = read_gguf_header(tiny_gguf)
    assert (header.architecture, header.quantisation, header.pre_tokenizer) == ("llama", "F32", "smollm")
    assert header.values["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in header.values
    assert header.counts["tokenizer.ggml.tokens"] == 320
    asked = read_gguf_header(tiny_gguf, ("tokenizer.ggml.tokens",))
    assert len(asked.values["tokenizer.ggml.tokens"]) == 320


def test_tensors_lie_where_another_reader_finds_them(tiny_gguf: Path) -> None:
    data, reader = tiny_gguf.read_bytes(), gguf.GGUFReader(tiny_gguf)
    found = {entry.name: entry for entry in read_gguf_header(tiny_gguf).tensors}
    assert found.keys() == {entry.name for entry in reader.tensors}
    for expected in reader.tensors:
        mine = found[expected.name]
        assert mine.shape == tuple(reversed(expected.shape.tolist()))
        assert (mine.block.name, mine.elements) == (expected.tensor_type.name, expected.n_elements)
        assert data[mine.offset : mine.offset + mine.size_bytes] == expected.data.tobytes()


def test_every_kind_of_value(tmp_path: Path) -> None:
    header = read_gguf_header(
        file_of(
            tmp_path,
            text("general.architecture") + struct.pack("<I", 8) + text("qwen2"),
            text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bb"),
            text("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<iii", 1, 2, 3),
            text("many") + struct.pack("<IIQ", 9, 0, KEPT_ITEMS + 1) + bytes(KEPT_ITEMS + 1),
            text("flag") + struct.pack("<I?", 7, True),
            text("general.file_type") + struct.pack("<II", 4, 15),
        )
    )
    assert (header.architecture, header.quantisation, header.values["flag"]) == ("qwen2", "Q4_K_M", True)
    assert header.values["numbers"] == (1, 2, 3)
    assert header.counts == {"words": 2, "numbers": 3, "many": KEPT_ITEMS + 1}
    assert "words" not in header.values and "many" not in header.values


def test_a_file_that_does_not_name_its_type_is_told_by_its_tensors(tmp_path: Path) -> None:
    entries = (tensor("a", (32,), kind=8), tensor("b", (4,), offset=32))
    assert read_gguf_header(file_of(tmp_path, tensors=entries)).quantisation == "Q8_0"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (text("x") + struct.pack("<I", 99), "unknown type 99"),
        (text("x") + struct.pack("<IIQ", 9, 8, 1 << 40), "array of"),
        (text("x") + struct.pack("<IIQ", 9, 8, 1 << 23), "ends too early"),
        (text("x") + struct.pack("<IIQ", 9, 10, 4000), "ends too early"),
        (struct.pack("<Q", MAX_STRING_BYTES + 1), "a text of"),
        (text("x") + struct.pack("<I", 8) + struct.pack("<Q", 5000) + b"ab", "ends too early"),
    ],
)
def test_lengths_and_types_are_not_believed(tmp_path: Path, entry: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        read_gguf_header(file_of(tmp_path, entry))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (tensor(offset=1 << 40), "w reaches beyond its end"),
        (tensor(shape=(17,)), "w reaches beyond its end"),
        (tensor(shape=(1 << 60, 1 << 60)), "claims the shape"),
        (tensor(shape=(0,)), "claims the shape"),
        (tensor(shape=(33,), kind=8), "rows of 33, which are no whole blocks"),
        (tensor(kind=4), "unknown type 4"),
        (tensor(shape=(1,) * 5), "has 5 dimensions"),
        (tensor("w" * 2000), "a text of 2000 bytes"),
    ],
)
def test_places_of_tensors_are_not_believed(tmp_path: Path, entry: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        read_gguf_header(file_of(tmp_path, tensors=(entry,)))


def test_counts_of_tensors_are_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"claims {MAX_TENSORS + 1} tensors"):
        read_gguf_header(file_of(tmp_path, tensor_count=MAX_TENSORS + 1))
    with pytest.raises(ModelError, match="ends too early"):
        read_gguf_header(file_of(tmp_path, tensor_count=MAX_TENSORS))
    with pytest.raises(ModelError, match="names a tensor twice"):
        read_gguf_header(file_of(tmp_path, tensors=(tensor(), tensor())))
    odd = text("general.alignment") + struct.pack("<II", 4, 0)
    with pytest.raises(ModelError, match="alignment 0"):
        read_gguf_header(file_of(tmp_path, odd, tensors=(tensor(),)))


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


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_a_cut_file_is_one_sentence(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    data = tiny_gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="not a whole GGUF file") as caught:
        read_gguf_header(tmp_path / "cut.gguf")
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(st.binary(max_size=80))
def test_random_bytes_give_only_our_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "random").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + data)
    with pytest.raises(ModelError):
        read_gguf_header(tmp_path / "random")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(st.integers(0, 600), st.binary(min_size=1, max_size=12))
def test_a_changed_header_gives_a_header_or_our_error(tmp_path: Path, at: int, change: bytes) -> None:
    """Never another error, and never a tensor beyond the end."""
    path = file_of(
        tmp_path,
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<iii", 1, 2, 3),
        tensors=(tensor("a", (32, 2), 8), tensor("b", (4,), 0, 68)),
        data=bytes(96),
    )
    data = path.read_bytes()
    path.write_bytes(data[: at % len(data)] + change + data[at % len(data) + len(change) :])
    try:
        header = read_gguf_header(path)
    except ModelError:
        return
    assert all(entry.offset + entry.size_bytes <= path.stat().st_size for entry in header.tensors)
