"""A model's bytes layer by layer, from what its files' headers say: what a split is planned from. Reads no weight.

Names decide where a tensor belongs: a number behind `layers.`, `h.`, `blk.` or `block.` is its layer; what is named
like an embedding of tokens is the first stage's, everything else the last stage's. Towers for images or sound are
nobody's: they are not loaded. Must not know devices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpu_node.errors import ModelError
from gpu_node.gguf_header import BLOCK_TYPES
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription, Tensor
from gpu_node.split_plan import LayerSize, ModelShape
from gpu_node.vram import BITS_OF_WEIGHTS, PLAIN_DTYPES, WIDENED_BYTES, cache_token_bytes

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks?)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|wpe|token_embd|embed_in|embed_positions|word_embeddings?|tok_embeddings)\."
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output|embed_out)\.weight$")
_OTHER_TOWER = re.compile(r"(?:^|\.)(?:vision\w*|visual\w*|audio\w*|multi_modal_projector|mm|v|a)\.")
_BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
_PLAIN_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def shape_of(name: str, model: ModelDescription, wish: LoadWish) -> ModelShape:
    """As it is held when loaded by `wish`. Raises `ModelError` where the names tell no layers."""
    held = Holding(model, wish)
    layers: dict[int, int] = {}
    embedding = head = head_matrix = weights = 0
    for tensor in model.tensors:
        if _OTHER_TOWER.search(tensor.name):
            continue
        size, layer = held.bytes_of(tensor), _LAYER.search(tensor.name)
        if layer:
            layers[int(layer[1])] = layers.get(int(layer[1]), 0) + size
            weights += tensor.elements
        elif _EMBEDDING.search(tensor.name):
            embedding += size
        else:
            head += size
            head_matrix += size if _HEAD.search(tensor.name) else 0
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ModelError(f"the tensors of {name} do not tell its layers, so it cannot be split")
    tied = not head_matrix
    token = cache_token_bytes(model.config, wish.dtype, model.quantisation) // len(layers)
    return ModelShape(
        name,
        tuple(LayerSize(layers[number], token) for number in range(len(layers))),
        embedding_bytes=embedding,
        head_bytes=head + (embedding if tied else 0),
        hidden_size=model.embedding_length,
        vocabulary=_vocabulary(model.tensors) or int(model.config.get("vocab_size") or 0),
        tied=tied,
        element_bytes=held.element_bytes,
        weight_bits=sum(layers.values()) * 8 / max(weights, 1),
    )


class Holding:
    """How many bytes a tensor takes in memory."""

    def __init__(self, model: ModelDescription, wish: LoadWish) -> None:
        quantised = model.quantisation.upper() not in PLAIN_DTYPES
        self._stored = wish.weights == "stored" or (wish.weights == "auto" and quantised)
        self._bits = BITS_OF_WEIGHTS.get(wish.weights)
        single = wish.dtype == "float32" or (wish.dtype == "auto" and model.quantisation.upper() in ("F32", "FLOAT32"))
        self.element_bytes = 4 if single else 2

    def bytes_of(self, tensor: Tensor) -> int:
        if self._stored:
            return max(stored_bytes(tensor), int(tensor.elements * WIDENED_BYTES.get(tensor.dtype, 0)))
        is_product = len(tensor.shape) > 1 and _LAYER.search(tensor.name)
        if self._bits and is_product:
            return int(tensor.elements * self._bits / 8)
        return tensor.elements * self.element_bytes


def stored_bytes(tensor: Tensor) -> int:
    """In the file. Raises `ModelError` for a type that is not known."""
    block = _BLOCKS.get(tensor.dtype)
    if block is not None:
        return -(-tensor.elements // block.values) * block.size_bytes
    size = _PLAIN_BYTES.get(tensor.dtype)
    if size is None:
        raise ModelError(f"the tensor {tensor.name} is of the unknown type {tensor.dtype}")
    return tensor.elements * size


def _vocabulary(tensors: Sequence[Tensor]) -> int:
    """Rows of the largest embedding."""
    return max((max(one.shape) for one in tensors if _EMBEDDING.search(one.name) and one.shape), default=0)
