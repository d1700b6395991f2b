"""From a source of weights to layers: which matrices are read together, in which numbers, and where they lie.

Invariants: weights that are held as they come lie in one buffer a layer, and are read straight into it; a quantised one
is never widened whole. Norms are kept in the compute dtype with a family's constant added. Must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_node.engine.layers.layer import LayerWeights
from gpu_node.engine.layers.recipe import Recipe
from gpu_node.engine.layers.shelf import Place, shelved
from gpu_node.engine.products.base import Lookup, Numerics, Product, QuantisedWeight
from gpu_node.engine.products.choice import lookup_of, product_of, product_of_parts, tied
from gpu_node.engine.products.int8 import Int8Product
from gpu_node.engine.products.quantise import measure_error
from gpu_node.engine.products.quantised_lookup import QuantisedLookup
from gpu_node.engine.weights.source import WeightSource

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True, eq=False)
class Exit:
    """What comes after the last layer."""

    norm: Tensor
    head: Product


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """What comes before the model's first layer and after its last, of a part that has them."""

    lookup: Lookup | None
    exit: Exit | None
    shared: bool = False  # embedding and head are one weight, held once
    # What is tied, ready for both uses of its one memory, also where this part has one of them only.
    pair: tuple[Lookup, Product] | None = None
    errors: tuple[float, ...] = ()  # of the head, if it was measured

    @property
    def bytes(self) -> int:
        """Of the tables, each counted once."""
        head = 0 if self.exit is None else self.exit.head.bytes
        return head + (0 if self.lookup is None or self.shared else self.lookup.bytes)

    def within(self, first: bool, last: bool) -> Ends:
        """What of it a part with these ends still needs."""
        if not first and not last:
            return Ends(None, None)
        lookup, leaving = self.lookup if first else None, self.exit if last else None
        return Ends(lookup, leaving, lookup is not None and leaving is not None and self.shared, self.pair, self.errors)


class Assembly:
    """Reads what a recipe asks for; of use while a model is loaded."""

    def __init__(self, source: WeightSource, recipe: Recipe, numerics: Numerics) -> None:
        self._source, self._recipe, self._numerics = source, recipe, numerics
        self._names = frozenset(source.names())

    def layer(self, index: int, measured: bool = False) -> tuple[LayerWeights, tuple[float, ...]]:
        """`measured`: products that do not hold the weight as it was are compared with it, and their relative errors
        told. Raises `ModelError`."""
        matrices = self._recipe.matrices(index)
        vectors = {name: path for name, path in self._recipe.vectors(index).items()}
        places = {name: Place(self._source.shape(path), self._numerics.compute) for name, path in vectors.items()}
        for name, prefixes in matrices.items():
            places |= self._places(name, prefixes)
        views = shelved(places, self._numerics.device)
        norms = {name: self._norm(views[name], path) for name, path in vectors.items()}
        made = {name: self._product(name, prefixes, views, measured) for name, prefixes in matrices.items()}
        errors = tuple(error for _, found in made.values() for error in found)
        products = {name: product for name, (product, _) in made.items()}
        return LayerWeights(**products, **self._with_head_norm(norms)), errors  # type: ignore[arg-type]

    def weights(self, index: int) -> tuple[str, ...]:
        """Names of what a layer is read from."""
        prefixes = [prefix for group in self._recipe.matrices(index).values() for prefix in group]
        biases = [f"{prefix}.bias" for prefix in prefixes if f"{prefix}.bias" in self._names]
        return (*(f"{prefix}.weight" for prefix in prefixes), *biases, *self._recipe.vectors(index).values())

    def end_weights(self, first: bool, last: bool) -> tuple[str, ...]:
        """The same of the ends."""
        table = EMBEDDING if self._tied else HEAD
        return tuple(dict.fromkeys(((EMBEDDING,) if first else ()) + ((table, FINAL_NORM) if last else ())))

    def ends(self, first: bool = True, last: bool = True, earlier: Ends | None = None) -> Ends:
        """Of a part that is the first, the last, both or neither. What is tied is held in both where they are apart,
        in the same numbers as together. `earlier`: what is there already is not read again. Raises `ModelError`."""
        if not first and not last:
            return Ends(None, None)
        had = earlier or Ends(None, None)
        return self._tied_ends(first, last, had) if self._tied else self._own_ends(first, last, had)

    @property
    def _tied(self) -> bool:
        return HEAD not in self._names or bool(getattr(self._source.config, "tie_word_embeddings", False))

    def _own_ends(self, first: bool, last: bool, had: Ends) -> Ends:
        lookup = (had.lookup or lookup_of(self._table(EMBEDDING), self._numerics)) if first else None
        if not last or had.exit is not None:
            return Ends(lookup, had.exit if last else None, errors=had.errors if last else ())
        weight = self._table(HEAD)
        head = product_of(weight, None, replace(self._numerics, may_round=False))
        return Ends(lookup, self._exit(head), errors=self._errors(head, [weight], None))

    def _tied_ends(self, first: bool, last: bool, had: Ends) -> Ends:
        lookup, leaving, pair, errors = had.lookup, had.exit, had.pair, had.errors
        if pair is None and ((first and lookup is None) or (last and leaving is None)):
            table = self._table(EMBEDDING)
            pair = tied(table, self._numerics)
            errors = errors or self._errors(pair[1], [table], None)
        if pair is not None:
            lookup = lookup or pair[0]
            leaving = leaving or (self._exit(pair[1]) if last else None)
        kept = pair if pair is not None and _one_memory(*pair) else None
        return Ends(
            lookup if first else None, leaving if last else None, first and last and kept is not None, kept, errors
        )

    def _exit(self, head: Product) -> Exit:
        norm = torch.empty(self._recipe.hidden_size, dtype=self._numerics.compute, device=self._numerics.device)
        return Exit(self._norm(norm, FINAL_NORM), head)

    def _places(self, name: str, prefixes: Sequence[str]) -> dict[str, Place]:
        """Of a matrix and its bias, where they go onto the shelf."""
        places = {}
        if self._on_shelf(prefixes):
            shapes = [self._source.shape(f"{prefix}.weight") for prefix in prefixes]
            rows = sum(shape[0] for shape in shapes)
            places[name] = Place((rows, shapes[0][1]), self._held_dtype(f"{prefixes[0]}.weight"))
        if f"{prefixes[0]}.bias" in self._names:
            rows = sum(self._source.shape(f"{prefix}.bias")[0] for prefix in prefixes)
            places[f"{name}.bias"] = Place((rows,), self._numerics.compute)
        return places

    def _product(
        self, name: str, prefixes: Sequence[str], views: dict[str, Tensor], measured: bool
    ) -> tuple[Product, tuple[float, ...]]:
        bias = views.get(f"{name}.bias")
        if bias is not None:
            self._read_stacked([f"{prefix}.bias" for prefix in prefixes], bias)
        names = [f"{prefix}.weight" for prefix in prefixes]
        parts: list[Tensor | QuantisedWeight]
        if name in views:
            self._read_stacked(names, views[name])
            parts = [views[name]]
        else:
            parts = self._parts(names)
        product = product_of_parts(parts, bias, self._numerics)
        return product, self._errors(product, parts, bias) if measured else ()

    def _parts(self, names: Sequence[str]) -> list[Tensor | QuantisedWeight]:
        parts = [self._table(name) for name in names]
        plain = [part for part in parts if isinstance(part, Tensor)]
        return [torch.cat(plain)] if len(plain) == len(parts) else parts

    def _on_shelf(self, prefixes: Sequence[str]) -> bool:
        if self._numerics.held_as != "given":
            return False
        names = [f"{prefix}.weight" for prefix in prefixes]
        alike = len({self._held_dtype(name) for name in names}) == 1
        return alike and all(self._source.dtype(name) in FLOATS for name in names)

    def _held_dtype(self, name: str) -> torch.dtype:
        """16-bit weights stay so under single precision; everything else becomes what computes."""
        if self._numerics.compute is not torch.float32:
            return self._numerics.compute
        return FLOATS.get(self._source.dtype(name), self._source.stored_dtype)

    def _table(self, name: str) -> Tensor | QuantisedWeight:
        found = self._source.quantised(name)
        if found is not None:
            return found.to(self._numerics.device)
        table = torch.empty(self._source.shape(name), dtype=self._held_dtype(name), device=self._numerics.device)
        self._source.read_into(name, table)
        return table

    def _read_stacked(self, names: Sequence[str], target: Tensor) -> None:
        at = 0
        for name in names:
            rows = self._source.shape(name)[0]
            self._source.read_into(name, target[at : at + rows])
            at += rows

    def _norm(self, target: Tensor, name: str) -> Tensor:
        self._source.read_into(name, target)
        return target.add_(1.0) if self._recipe.family.gemma else target

    def _with_head_norm(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Norms of single heads become one for queries and keys together."""
        if self._recipe.family.head_norm != "head":
            return norms
        query, key = norms.pop("query_norm"), norms.pop("key_norm")
        together = torch.cat([query.expand(self._recipe.heads, -1), key.expand(self._recipe.kv_heads, -1)])
        return norms | {"head_norm": together}

    def _errors(
        self, product: Product, parts: Sequence[Tensor | QuantisedWeight], bias: Tensor | None
    ) -> tuple[float, ...]:
        quantised = self._numerics.held_as != "given" or isinstance(parts[0], QuantisedWeight)
        if not quantised or len(parts) != 1:
            return ()
        return (measure_error(product, parts[0], self._numerics.compute, bias),)


def _one_memory(lookup: Lookup, head: Product) -> bool:
    """Whether what is tied is held once: only packed products that no lookup reads have a copy of their own."""
    return not isinstance(lookup, QuantisedLookup) or isinstance(head, Int8Product)
