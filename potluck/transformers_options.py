"""The options of transformers' `generate` as those of a relay node: pure, without torch or transformers.

Invariants: defaults are those of transformers (greedy unless `do_sample`, temperature 1, top-k 50, no penalty); what a
node cannot honour is refused by its name, unless its value means that it is off. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .errors import Misuse
from .relay_asking import GenerateOptions

__all__ = ["Wish", "wish_of"]

# What transformers does when nobody says how long: 20 tokens, the prompt's among them.
USUAL_MAX_LENGTH = 20
# Accepted only as "off", which is how programs pass them along.
OFF: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "use_cache": (True, False), "output_scores": (False,),
    "output_logits": (False,), "output_attentions": (False,), "output_hidden_states": (False,),
    "return_dict_in_generate": (False,), "synced_gpus": (False,), "early_stopping": (False,), "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "renormalize_logits": (False,), "remove_invalid_values": (False,), "diversity_penalty": (0.0,),
    "guidance_scale": (1.0,), "bad_words_ids": (), "logits_processor": ([],), "stopping_criteria": ([],),
    "prefix_allowed_tokens_fn": (), "assistant_model": (), "negative_prompt_ids": (), "constraints": (),
    "force_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": (), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "penalty_alpha": (), "generation_config": (), "token_type_ids": (), "position_ids": (),
    "past_key_values": (), "cache_implementation": (), "watermarking_config": (), "custom_generate": (),
}  # fmt: skip
_KNOWN = (
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "do_sample", "temperature", "top_k", "top_p",
    "min_p", "typical_p", "repetition_penalty", "num_return_sequences", "eos_token_id", "pad_token_id",
    "sequence_bias", "seed", "stop_strings", "tokenizer", "max_time",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """`options` are the node's. An answer ends behind the first of `end_ids`, and is filled up with `pad_id`."""

    options: GenerateOptions
    sequences: int
    end_ids: frozenset[int]
    pad_id: int
    seed: int | None
    samples: bool


def wish_of(given: Mapping[str, Any], prompt_tokens: int, end_ids: Collection[int]) -> Wish:
    """`end_ids` are the model's own. Raises Misuse."""
    values = {name: value for name, value in given.items() if value is not None}
    _refuse(values)
    ends = _ids(values.get("eos_token_id"), end_ids)
    # The node writes end tokens like any other, and we stop behind them: they belong to the sequence here.
    options: dict[str, Any] = {
        **_lengths(values, prompt_tokens),
        **_sampling(values),
        "ignore_end": True,
        "truncate": False,
        "shift": False,
    }
    if "stop_strings" in values:
        options["stop"] = values["stop_strings"]
    if "max_time" in values:
        raise Misuse("max_time cannot be honoured: it would end in an answer here and in an error there")
    pad = values.get("pad_token_id", min(ends, default=0))
    sequences, samples = int(values.get("num_return_sequences", 1)), bool(values.get("do_sample", False))
    if sequences > 1 and not samples:
        raise Misuse("num_return_sequences above 1 needs do_sample: greedy answers are all the same")
    return Wish(GenerateOptions(**options), sequences, ends, int(pad), values.get("seed"), samples)  # type: ignore[typeddict-item]


def _refuse(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _KNOWN:
            continue
        if name not in OFF:
            near = get_close_matches(name, (*_KNOWN, *OFF), 1)
            raise Misuse(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if not any(value == off and type(value) is type(off) for off in OFF[name]):
            raise Misuse(f"{name} cannot be honoured by a node: leave it out, or generate here")


def _ids(wanted: int | Sequence[int] | None, own: Collection[int]) -> frozenset[int]:
    if wanted is None:
        return frozenset(own)
    if isinstance(wanted, int):
        return frozenset() if wanted < 0 else frozenset((wanted,))
    return frozenset(int(each) for each in wanted)


def _lengths(values: Mapping[str, Any], prompt_tokens: int) -> dict[str, int]:
    most = values.get("max_new_tokens")
    if most is None:
        most = values.get("max_length", USUAL_MAX_LENGTH) - prompt_tokens
        if most < 1:
            raise Misuse(f"max_length {values.get('max_length', USUAL_MAX_LENGTH)} leaves nothing behind the prompt")
    if most < 1:
        raise Misuse("max_new_tokens must be above 0")
    least = values.get("min_new_tokens", values.get("min_length", prompt_tokens) - prompt_tokens)
    if least > most:
        raise Misuse(f"at least {least} new tokens and at most {most}")
    return {"max_tokens": int(most), "min_tokens": max(0, int(least))}


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    penalty = float(values.get("repetition_penalty", 1.0))
    common: dict[str, Any] = {"repeat_penalty": penalty, "repeat_last_n": -1}
    if "sequence_bias" in values:
        common["logit_bias"] = _bias(values["sequence_bias"])
    if not values.get("do_sample", False):
        return {**common, "temperature": 0.0}
    temperature = float(values.get("temperature", 1.0))
    if temperature <= 0:
        raise Misuse("temperature must be above 0; do_sample=False is greedy")
    return {
        **common,
        "temperature": temperature,
        "top_k": int(values.get("top_k", 50)),
        "top_p": float(values.get("top_p", 1.0)),
        "min_p": float(values.get("min_p", 0.0)),
        "typical_p": float(values.get("typical_p", 1.0)),
    }


def _bias(bias: Mapping[tuple[int, ...], float]) -> dict[int, float]:
    if any(len(ids) != 1 for ids in bias):
        raise Misuse("sequence_bias can be honoured for single tokens only")
    return {ids[0]: float(value) for ids, value in bias.items()}
