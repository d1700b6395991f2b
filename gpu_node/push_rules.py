"""Which offers of a model's files the store takes: decided from names and sizes, before a byte of them is kept.

Invariants: nothing is taken that could run when it is opened, nor what the store itself writes; an accepted offer holds
one model that can be loaded from its files alone. What the protocol has checked is checked again: a path is made of
these names. Must not touch the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from gpu_node.model_folder import ORIGIN_FILE, PICKLE_REFUSAL, PICKLE_SUFFIXES
from gpu_node.names import is_valid
from wire.messages_work import Push
from wire.names import fault_of_files, fault_of_name

WEIGHTS = frozenset({".safetensors", ".gguf"})
# Configurations, tokenizers (also of sentencepiece), templates, and what people write beside them.
TEXTS = frozenset({".json", ".txt", ".model", ".jinja", ".md"})
PLAIN_NAMES = frozenset({"license", "notice", "readme"})
# They are read whole, and the largest tokenizers have about 35 MB.
LARGEST_TEXT_BYTES = 64 << 20
# One folder's name on disk, beside which an unfinished one needs a few letters more.
LONGEST_NAME = 128


def fault_of_offer(offer: Push) -> str | None:
    """Why the store does not take it, as a sentence; None if it does."""
    names = [file.name for file in offer.files]
    return (
        _fault_of_model(offer.model)
        or next(filter(None, map(fault_of_name, names)), None)
        or fault_of_files(names)
        or next(filter(None, (_fault_of_file(file.name, file.size) for file in offer.files)), None)
        or _fault_of_whole(names)
    )


def _fault_of_model(name: str) -> str | None:
    fault = fault_of_name(name)
    if fault:
        return fault
    if not is_valid(name):
        return f"{name!r} is no model name: letters, digits, dots, dashes and underscores, in parts between slashes"
    if len(name) > LONGEST_NAME:
        return f"a model's name has at most {LONGEST_NAME} characters"
    return None


def _fault_of_file(name: str, size: int) -> str | None:
    path = PurePosixPath(name.lower())
    if path.name == ORIGIN_FILE:
        return f"{name} is refused: files of this name are the store's own"
    if path.suffix in PICKLE_SUFFIXES:
        return f"{name} is refused: {PICKLE_REFUSAL}"
    if path.suffix in WEIGHTS:
        return None
    if path.suffix not in TEXTS and path.name not in PLAIN_NAMES:
        taken = ", ".join(sorted(WEIGHTS | TEXTS))
        return f"{name} is refused: a model is made of {taken}"
    if size > LARGEST_TEXT_BYTES:
        return f"{name} is refused: {size} bytes are too many for a file that is read whole"
    return None


def _fault_of_whole(names: Sequence[str]) -> str | None:
    """The rules by which a folder is a model, told from its names; whoever reads weights looks for small letters."""
    top = [name for name in names if "/" not in name]
    if any(name.endswith(".safetensors") for name in top):
        return None if "config.json" in names else "a model of safetensors needs its config.json"
    count = sum(name.endswith(".gguf") for name in top)
    if count == 1:
        return None
    if count:
        return f"there are {count} GGUF files in it: push one at a time, each under a name of its own"
    return "there is no model in it: neither a .safetensors nor a .gguf file"
