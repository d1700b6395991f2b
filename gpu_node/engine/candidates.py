"""The likeliest tokens of many rows of logits, and one draw from each, without sorting what cannot be drawn.

Invariants: candidates come likeliest first and, where logits are equal, lowest token first, so a row's outcome does
not depend on the rows beside it; nothing crosses to the host. Must not know requests, penalties or masks: it takes rows
that are ready, float32, padded with -inf to a multiple of `CHUNK`, and numbers per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpu_node.engine.draws import Draw, NoToken

# A row is first reduced to the maxima of so many neighbours: the k likeliest tokens lie in the k likeliest chunks.
CHUNK = 32
# Rows without top-k look at so many candidates first. In text these hold nearly always all that can be drawn.
FIRST_LOOK = 128

LOW = (1 << 32) - 1


def likeliest(rows: Tensor) -> Tensor:
    """The token of the largest logit of each row [n, any], or a `NoToken`."""
    # On CPUs torch's own argmax takes twenty times as long as numpy's.
    on_cpu = rows.device.type == "cpu"
    ids = torch.from_numpy(rows.float().numpy().argmax(axis=-1)) if on_cpu else rows.argmax(dim=-1)
    return explained(ids, rows.gather(-1, ids.unsqueeze(-1)).squeeze(-1))


def explained(ids: Tensor, peaks: Tensor) -> Tensor:
    """`ids`, or the reason where the largest logit of the row is no number to choose by."""
    reasons = torch.where(peaks == -torch.inf, NoToken.NOTHING_ALLOWED, NoToken.NOT_FINITE)
    return torch.where(torch.isfinite(peaks), ids, reasons)


def drawn(rows: Tensor, draws: Sequence[Draw], everything: bool = False) -> Tensor:
    """One token a row [n, chunks * CHUNK], or a `NoToken`; `UNDECIDED` only without `everything`.

    The order is Ollama's: top-k, temperature, top-p, min-p. Locally typical sampling comes where llama.cpp has it,
    between top-k and top-p, here on the probabilities that the temperature has shaped. Then the inverse of the
    cumulative distribution of what is left, likeliest first, is taken at the row's uniform number.
    """
    width = rows.shape[-1]
    limits = [draw.top_k if 0 < draw.top_k < width else width for draw in draws]
    count = width if everything else min(width, max(FIRST_LOOK if at == width else at for at in limits))
    values, tokens, peaks = ranked(rows, count)
    numbers = _numbers(draws, limits, rows.device)
    weights = ((values - values[:, :1]) / numbers.temperature.to(torch.float32)).exp().to(numbers.limit.dtype)
    if count > min(limits):
        weights.masked_fill_(torch.arange(count, device=rows.device) >= numbers.limit, 0.0)
    narrow = any(draw.typical_p < 1.0 for draw in draws)
    if count >= max(limits):
        keep, chances = kept(weights / weights.sum(-1, keepdim=True), numbers, narrow)
        columns = _columns(keep, chances, numbers.uniform, None)
    else:
        columns = _seen_columns(rows, values, weights, numbers)
    found = tokens.gather(-1, columns.clamp(min=0))
    return explained(torch.where(columns < 0, columns, found).squeeze(-1), peaks)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The rows' draws on the device, each [n, 1]."""

    uniform: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    typical_p: Tensor
    limit: Tensor


def _numbers(draws: Sequence[Draw], limits: Sequence[int], device: torch.device) -> Numbers:
    exact = torch.float32 if device.type == "mps" else torch.float64  # one GPU maker has no doubles
    table = torch.tensor(
        [(d.uniform, d.temperature, d.top_p, d.min_p, d.typical_p, k) for d, k in zip(draws, limits, strict=True)],
        dtype=exact,
    )
    return Numbers(*table.to(device).unsqueeze(-1).unbind(1))


def _seen_columns(rows: Tensor, values: Tensor, weights: Tensor, numbers: Numbers) -> Tensor:
    """As `_columns`, where some rows have more candidates than were looked at: what these leave open is `UNDECIDED`."""
    beyond = numbers.limit > values.shape[-1]
    scaled = (rows - values[:, :1]).div_(numbers.temperature.to(torch.float32)).exp_()
    whole = scaled.sum(-1, keepdim=True, dtype=weights.dtype)
    chances = weights / torch.where(beyond, whole, weights.sum(-1, keepdim=True))
    keep, _ = kept(chances, numbers, narrow=False)
    # Where the last candidate is kept, so may be others after it: only a row that keeps everything knows its sum.
    ragged = keep[:, -1:] & beyond
    mass = torch.where(ragged, 1.0, (chances * keep).sum(-1, keepdim=True))
    columns = _columns(keep, chances, numbers.uniform, mass)
    outside = numbers.uniform * mass >= (chances * keep).sum(-1, keepdim=True)
    partial = (numbers.top_p < 1.0) | (numbers.min_p > 0.0)
    unseen = (ragged & (partial | outside)) | (numbers.typical_p < 1.0)
    return torch.where(unseen, NoToken.UNDECIDED, columns)


def _columns(keep: Tensor, chances: Tensor, uniform: Tensor, mass: Tensor | None) -> Tensor:
    """The first column [n, 1] at which the kept probabilities add up to more than the uniform share of `mass`."""
    kept_chances = chances * keep
    sums = kept_chances.cumsum(-1)
    reach = uniform * (sums[:, -1:] if mass is None else mass)
    # Rounding may put it at the very end; the column after which the sum stands still is the last that is kept.
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum((sums <= reach).sum(-1, keepdim=True), last)


def kept(chances: Tensor, numbers: Numbers, narrow: bool) -> tuple[Tensor, Tensor]:
    """Which candidates may be drawn, and their probabilities before top-p and min-p looked at them."""
    if narrow:
        chances = chances * typical(chances, numbers.typical_p)
        chances = chances / chances.sum(-1, keepdim=True)
    return narrowed(chances, numbers.top_p, numbers.min_p), chances


def typical(chances: Tensor, mass: Tensor) -> Tensor:
    """Those whose surprise is nearest the expected one, until they hold `mass`; 1 or more keeps all.

    Meister, Pimentel, Wiher, Cotterell: Locally Typical Sampling, 2022.
    """
    surprise = -chances.log()
    distance = (surprise - torch.special.entr(chances).sum(-1, keepdim=True)).abs()
    columns = torch.arange(chances.shape[-1], device=chances.device)
    nearest = LOW - (sorted_keys(keyed(-distance.to(torch.float32), columns), len(columns)) & LOW)
    sorted_chances = chances.gather(-1, nearest)
    before = sorted_chances.cumsum(-1) - sorted_chances
    near = before < mass
    near[:, 0] = True
    return torch.zeros_like(near).scatter_(-1, nearest, near) | (mass >= 1.0)


def narrowed(chances: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """What top-p and min-p leave of probabilities that fall from left to right, zeros between them; at least one."""
    before = chances.cumsum(-1) - chances
    first = chances.argmax(-1, keepdim=True)
    keep = (before < top_p) | (top_p >= 1.0)
    keep &= chances >= min_p * chances.gather(-1, first)
    keep &= chances > 0
    return keep.scatter_(-1, first, True)


def ranked(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` likeliest of each row in order: logits, tokens, and the row's largest logit, NaN if any is.

    In the order of the keys the first token of a chunk stands for the chunk, and chunks are neighbours in token order,
    so the k likeliest tokens lie in the k chunks whose maxima lead.
    """
    number, width = rows.shape
    maxima = rows.view(number, width // CHUNK, CHUNK).amax(-1)
    peaks = maxima.amax(-1)
    if count >= maxima.shape[-1]:
        keys = sorted_keys(keyed(rows, torch.arange(width, device=rows.device)), count)
    else:
        places = torch.arange(maxima.shape[-1], device=rows.device)
        leading = keyed(maxima, places).topk(count, dim=-1).indices
        flat = (leading + (places.shape[0] * torch.arange(number, device=rows.device)).unsqueeze(-1)).flatten()
        near = rows.view(-1, CHUNK).index_select(0, flat).view(number, count * CHUNK)
        tokens = (leading.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=rows.device)).flatten(1)
        keys = keyed(near, tokens).topk(count, dim=-1).values
    ordered = (keys >> 32).to(torch.int32)
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return values, LOW - (keys & LOW), peaks


def keyed(values: Tensor, tokens: Tensor) -> Tensor:
    """Integers that order as (float32 value, lower token first) does: the float's bits above, the token below."""
    bits = values.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | (LOW - tokens)


def sorted_keys(keys: Tensor, count: int) -> Tensor:
    if keys.device.type == "cpu":  # numpy sorts with vector instructions
        return torch.from_numpy(~np.sort((~keys).numpy(), axis=-1)[:, :count])
    return keys.sort(dim=-1, descending=True).values[:, :count]
