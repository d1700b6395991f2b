"""What may be pushed, told from names and sizes alone."""

from __future__ import annotations

import pytest

from gpu_node.push_rules import LARGEST_TEXT_BYTES, fault_of_offer
from wire.messages_work import Push, PushFile

WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


def offer(*names: str, model: str = "anna/tiny-1.5", size: int = 3) -> Push:
    """Made past the protocol's own checks, which must not be the only ones."""
    made = object.__new__(Push)
    object.__setattr__(made, "model", model)
    object.__setattr__(made, "files", tuple(PushFile(name, size, b"\1" * 32) for name in names))
    return made


@pytest.mark.parametrize(
    "names",
    [
        WHOLE,
        ("tiny.Q4_0.gguf",),
        ("tiny.gguf", "README.md", "LICENSE"),
        (*WHOLE, "model.safetensors.index.json", "tokenizer.model", "vocab.txt", "chat_template.jinja"),
        (*WHOLE, "1_Pooling/config.json"),
    ],
)
def test_models_are_taken(names: tuple[str, ...]) -> None:
    assert fault_of_offer(offer(*names)) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model.bin", "can run any code"),
        ("model.PT", "can run any code"),
        ("weights/model.pkl", "can run any code"),
        ("modeling_tiny.py", "a model is made of"),
        ("run.sh", "a model is made of"),
        ("model.so", "a model is made of"),
        ("Makefile", "a model is made of"),
        ("potluck.json", "the store's own"),
        ("sub/Potluck.JSON", "the store's own"),
        ("../config.json", "cannot be part of a name"),
        ("/etc/cron.txt", "cannot be part of a name"),
        ("a/../b.json", "cannot be part of a name"),
        (".pushed.json", "cannot be part of a name"),
        ("a\\b.json", "cannot be part of a name"),
        ("c:x.json", "cannot be part of a name"),
        ("a\0.json", "cannot be part of a name"),
        ("nul.json", "cannot be part of a name"),
        ("CONFIG.json", "stands twice"),
        ("config.json/x.txt", "a file and a folder"),
    ],
)
def test_one_wrong_file_refuses_the_offer(name: str, told: str) -> None:
    assert told in fault_of_offer(offer(*WHOLE, name))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("config.json",), "there is no model in it"),
        (("model.safetensors",), "needs its config.json"),
        (("config.json", "sub/model.safetensors"), "there is no model in it"),
        (("a.gguf", "b.gguf"), "2 GGUF files"),
        (("MODEL.GGUF",), "there is no model in it"),
    ],
)
def test_what_could_never_be_loaded_is_not_sent_in_vain(names: tuple[str, ...], told: str) -> None:
    assert told in fault_of_offer(offer(*names))


@pytest.mark.parametrize("model", ["..", "a/../b", "/a", ".hidden", "a+b", "a=b", "a" * 129, "x/" * 9 + "x", "con", ""])
def test_a_model_has_a_name_that_clients_can_write(model: str) -> None:
    assert fault_of_offer(offer(*WHOLE, model=model))


def test_files_that_are_read_whole_are_small() -> None:
    assert fault_of_offer(offer(*WHOLE, size=LARGEST_TEXT_BYTES)) is None
    assert "config.json is refused" in fault_of_offer(offer(*WHOLE, size=LARGEST_TEXT_BYTES + 1))
    assert fault_of_offer(offer("large.gguf", size=1 << 50)) is None
