"""How a family of models differs from Llama, as values: read once from transformers' configuration.

Invariants: a recipe says everything that computes; a configuration with anything that a recipe cannot say gives
`NotCovered`, and the plain path runs that model. Must not know weights, devices or the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

Activation = Literal["silu", "gelu_tanh"]
HeadNorm = Literal["none", "head", "all"]

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
)
# Their frequencies depend on how long the longest sequence of a batch is: no table of angles can hold them.
MOVING_ROTARY = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class NotCovered:
    """These layers cannot run the model; the plain path may."""

    reason: str  # a sentence for people


@dataclass(frozen=True, slots=True)
class Norms:
    """Names of a layer's norms around its two halves; None: there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


BEHIND = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
AROUND = Norms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True)
class Family:
    """What the code of a family does that its configuration does not say."""

    rotary: str  # module and class in transformers that knows the angles
    norms: Norms = Norms()
    head_norm: HeadNorm = "none"  # queries and keys are normalised head by head, or all heads together
    fused: bool = False  # its files hold queries, keys and values, and gate and up, as one matrix each
    gemma: bool = False  # norms multiply by 1 + weight, embeddings by the square root of their size


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family("llama.Llama"),
        "mistral": Family("mistral.Mistral"),
        "qwen2": Family("qwen2.Qwen2"),
        "qwen3": Family("qwen3.Qwen3", head_norm="head"),
        "smollm3": Family("smollm3.SmolLM3"),
        "granite": Family("granite.Granite"),
        "olmo2": Family("olmo2.Olmo2", norms=BEHIND, head_norm="all"),
        "phi3": Family("phi3.Phi3", fused=True),
        "gemma2": Family("gemma2.Gemma2", norms=AROUND, gemma=True),
        "gemma3_text": Family("gemma3.Gemma3", norms=AROUND, head_norm="head", gemma=True),
    }
)


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors that a family puts in; all 1 for Llama, but for the attention's."""

    attention: float
    embedding: float = 1.0
    given: float = 1.0  # the part of it that embeddings get which come in place of the tokens' own
    logits: float = 1.0


@dataclass(frozen=True, slots=True)
class Caps:
    """cap * tanh(x / cap); None: as they are."""

    attention: float | None = None
    logits: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a family scales what a layer adds by r (Granite), the residual is kept divided by r instead: norms do not
    see the difference but for their epsilon, and everything in between is as Llama's."""

    family: Family
    hidden_size: int
    vocabulary_size: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    residual_epsilon: float  # of norms over the residual: epsilon / r^2
    activation: Activation
    windows: tuple[int | None, ...]  # one a layer: slots that it sees, its own included
    turns: tuple[str | None, ...]  # one a layer: which table of angles; None: positions are not told
    scales: Scales
    caps: Caps
    first: int = 0  # of a part's recipe: which of the model's layers its first one is

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.kv_heads * self.head_dim

    def part(self, first: int, behind: int) -> Recipe:
        """Of the layers `first` to `behind` (excluded) only, which are counted from 0 in it."""
        windows, turns = self.windows[first:behind], self.turns[first:behind]
        return replace(self, windows=windows, turns=turns, first=self.first + first)

    def matrices(self, layer: int) -> dict[str, tuple[str, ...]]:
        """The four products of a layer: names of the matrices, without `.weight`, that lie below each other in each."""
        prefix = f"model.layers.{self.first + layer}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return {
            "qkv": tuple(f"{attention}{name}_proj" for name in (("qkv",) if self.family.fused else "qkv")),
            "output": (f"{attention}o_proj",),
            "gate_up": tuple(f"{mlp}{name}_proj" for name in (("gate_up",) if self.family.fused else ("gate", "up"))),
            "down": (f"{mlp}down_proj",),
        }

    def vectors(self, layer: int) -> dict[str, str]:
        """A layer's norms: what for, and the parameter's name."""
        norms, prefix = self.family.norms, f"model.layers.{self.first + layer}."
        places = ("before_attention", "after_attention", "before_mlp", "after_mlp")
        found = {place: f"{prefix}{getattr(norms, place)}.weight" for place in places if getattr(norms, place)}
        if self.family.head_norm != "none":
            found |= {f"{name}_norm": f"{prefix}self_attn.{name[0]}_norm.weight" for name in ("query", "key")}
        return found


def recipe_of(config: Any) -> Recipe | NotCovered:
    """`config`: of a causal language model, as transformers reads it."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return NotCovered(f"There are no own layers for models of type {config.model_type}.")
    refused = _refusal(config)
    if refused:
        return NotCovered(refused)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Recipe(
        family=family,
        hidden_size=config.hidden_size,
        vocabulary_size=config.vocab_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        epsilon=config.rms_norm_eps,
        residual_epsilon=config.rms_norm_eps / _residual(config) ** 2,
        activation=ACTIVATIONS[_activation(config)],
        windows=_windows(config),
        turns=_turns(config),
        scales=_scales(config, family, head_dim),
        caps=Caps(getattr(config, "attn_logit_softcapping", None), getattr(config, "final_logit_softcapping", None)),
    )


def _residual(config: Any) -> float:
    return float(getattr(config, "residual_multiplier", 1.0))


def _refusal(config: Any) -> str:
    if _activation(config) not in ACTIVATIONS:
        return f"Own layers do not know the activation {_activation(config)}."
    if getattr(config, "quantization_config", None):
        return "Own layers do not read weights that were quantised by a library for transformers."
    if getattr(config, "use_bidirectional_attention", None):
        return "Own layers look back only, and this model looks both ways."
    if not _residual(config):
        return "Own layers cannot leave out what layers add."
    moving = sorted({kind for kind in rotary_kinds(config) if kind in MOVING_ROTARY})
    if moving:
        return f"Own layers do not know rotary angles that change with the length ({', '.join(moving)})."
    unknown = sorted(set(_layer_types(config)) - {"full_attention", "sliding_attention"})
    return f"Own layers do not know layers of type {', '.join(unknown)}." if unknown else ""


def rotary_kinds(config: Any) -> list[str]:
    """The types of rotary scaling that a configuration names, of all its tables."""
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [str(table["rope_type"]) for table in tables if "rope_type" in table]


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])


def _windows(config: Any) -> tuple[int | None, ...]:
    window: int | None = getattr(config, "sliding_window", None)
    types = _layer_types(config)
    if not types:
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _turns(config: Any) -> tuple[str | None, ...]:
    """Tables are named by the layer type where each type has its own, else they are one without a name."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        return tuple(_layer_types(config))
    told = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    return tuple("" if yes else None for yes in told)


def _scales(config: Any, family: Family, head_dim: int) -> Scales:
    attention = getattr(config, "attention_multiplier", None)
    if attention is None:
        attention = getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5
    # Gemma's is a part of its embeddings, Granite's comes after them.
    given = getattr(config, "embedding_multiplier", 1.0)
    embedding = config.hidden_size**0.5 if family.gemma else given
    return Scales(
        attention=float(attention),
        embedding=float(embedding) / _residual(config),
        given=float(given) / _residual(config),
        logits=1.0 / float(getattr(config, "logits_scaling", 1.0)),
    )
