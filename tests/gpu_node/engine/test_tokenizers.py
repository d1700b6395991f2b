"""A tokenizer built from a GGUF file is the one that the model was trained with, and is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_node.engine.tokenizers import end_ids, tokenizer_in, tokenizer_of, tokenizer_of_gguf
from gpu_node.errors import ModelError
from gpu_node.model_folder import ModelFiles
from tests.fakes.tiny_model import CHAT_TEMPLATE
from tests.gpu_node.engine.weights.written_gguf import tiny_model, write_gguf

TEXTS = ("the quick brown fox", "<|im_start|>user\nzażółć 😀<|im_end|>", "  two  spaces\n", "")


def test_texts_become_the_same_ids_as_with_the_original(tiny_gguf: Path, tiny_folder: Path) -> None:
    built, original = tokenizer_of_gguf(tiny_gguf), tokenizer_in(tiny_folder)
    for text in TEXTS:
        ids = built(text)["input_ids"]
        assert ids == original(text)["input_ids"]
        assert built.decode(ids) == original.decode(ids)
    assert built.chat_template == CHAT_TEMPLATE
    assert (built.bos_token, built.eos_token, built.unk_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def test_it_is_the_one_that_transformers_builds(tiny_gguf: Path) -> None:
    """But for the digits, which transformers leaves together."""
    from transformers import AutoTokenizer

    built, theirs = (
        tokenizer_of_gguf(tiny_gguf),
        AutoTokenizer.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name),
    )
    mine, other = (json.loads(one.backend_tokenizer.to_str()) for one in (built, theirs))
    digits, rest = mine.pop("pre_tokenizer")["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert rest == other.pop("pre_tokenizer")
    assert mine == other


def test_a_folder_of_the_store_keeps_it(tiny_gguf: Path, tmp_path: Path) -> None:
    built, first = tokenizer_of_gguf(tiny_gguf), tokenizer_of(ModelFiles(tiny_gguf, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    stamp = (tmp_path / "tokenizer.json").stat().st_mtime_ns
    second = tokenizer_of(ModelFiles(tiny_gguf, tmp_path))
    assert (tmp_path / "tokenizer.json").stat().st_mtime_ns == stamp
    for text in (*TEXTS, "1985, 12"):
        assert first(text)["input_ids"] == second(text)["input_ids"] == built(text)["input_ids"]
    assert second.chat_template == built.chat_template


def test_half_of_a_kept_one_is_none(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert tokenizer_of(ModelFiles(tiny_gguf, tmp_path))("the")["input_ids"]
    assert (tmp_path / "tokenizer.json").exists()


def test_a_folder_that_is_gone_hinders_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    assert tokenizer_of(ModelFiles(tiny_gguf, tmp_path / "gone"))("the")["input_ids"]
    assert tokenizer_of(ModelFiles(tiny_gguf, None))("the")["input_ids"]


def test_a_file_without_a_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    path = write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"))
    with pytest.raises(ModelError, match=r"m\.gguf holds no tokenizer"):
        tokenizer_of_gguf(path)


def test_every_way_to_say_where_an_answer_ends_counts(tiny_folder: Path) -> None:
    class Nothing:
        eos_token_id = None

        def get_vocab(self) -> dict[str, int]:
            return {"<end_of_turn>": 9, "word": 3}

    def config(value: Any) -> Any:
        return type("Config", (), {"eos_token_id": value})

    assert end_ids(Nothing(), config([4, 5]), config(6), config(None)) == {4, 5, 6, 9}
    assert end_ids(tokenizer_in(tiny_folder)) == {0, 2}, "<|endoftext|> by its name, <|im_end|> as the end"
