"""One draw from one row of logits in main memory: what `candidates` does for many rows on a device, in numpy.

On a CPU the arithmetic is nothing and the cost of an operation everything: numpy's are several times cheaper than
torch's, and row by row nothing is computed that this row does not need. Invariant: the same outcome as
`candidates.drawn`, which tests hold it to. Must not know torch, requests, penalties or masks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpu_node.engine.draws import Draw, NoToken

Row = np.ndarray[Any, np.dtype[np.float32]]
Numbers = np.ndarray[Any, np.dtype[Any]]

LOW = (1 << 32) - 1


def draw_on_host(row: Row, draw: Draw, chunk: int, first_look: int) -> int:
    """A token of the row [chunks * chunk], or a `NoToken`. Rows without top-k begin with `first_look` candidates."""
    peak = float(row.max())
    if not math.isfinite(peak):
        return NoToken.NOTHING_ALLOWED if peak == -math.inf else NoToken.NOT_FINITE
    limit = draw.top_k if 0 < draw.top_k < row.size else row.size
    if limit == row.size and draw.typical_p >= 1.0 and first_look < limit:
        found = _look(row, draw, peak, first_look, limit, chunk)
        if found is not None:
            return found
    found = _look(row, draw, peak, limit, limit, chunk)
    assert found is not None, "whoever sees all candidates can decide"
    return found


def _look(row: Row, draw: Draw, peak: float, count: int, limit: int, chunk: int) -> int | None:
    """The draw, judged by the `count` likeliest of `limit` candidates; None when it lies beyond them."""
    values, tokens = leading(row, count, chunk)
    heat = np.float32(draw.temperature)
    weights = np.exp((values - np.float32(peak)) / heat).astype(np.float64)
    ragged = count < limit
    total = np.exp((row - np.float32(peak)) / heat).sum(dtype=np.float64) if ragged else weights.sum()
    chances = weights / total
    if draw.typical_p < 1.0:
        chances = np.where(typical(chances, draw.typical_p), chances, 0.0)
        chances /= chances.sum()
    keep = narrowed(chances, draw)
    sums = np.where(keep, chances, 0.0).cumsum()
    mass = sums[-1]
    if ragged and keep[-1]:  # so may be others after it: only a row that keeps everything knows its sum
        if draw.top_p < 1.0 or draw.min_p > 0.0 or draw.uniform >= mass:
            return None
        mass = 1.0
    at = int(np.searchsorted(sums, draw.uniform * mass, side="right"))
    # Rounding may put it at the very end: then it is the last that is kept.
    return int(tokens[min(at, int(keep.nonzero()[0][-1]))])


def narrowed(chances: Numbers, draw: Draw) -> Numbers:
    """Which candidates top-p and min-p leave of probabilities that fall, zeros between them; at least one."""
    first = int(chances.argmax())
    keep = chances > 0.0
    if draw.top_p < 1.0:
        keep &= chances.cumsum() - chances < draw.top_p
    if draw.min_p > 0.0:
        keep &= chances >= draw.min_p * chances[first]
    keep[first] = True
    return keep


def typical(chances: Numbers, mass: float) -> Numbers:
    """Those whose surprise is nearest the expected one, until they hold `mass` (see `candidates.typical`)."""
    known = chances > 0.0
    surprise = np.full_like(chances, np.inf)
    np.log(chances, out=surprise, where=known)
    surprise[known] *= -1.0
    expected = (chances[known] * surprise[known]).sum()
    nearest = np.abs(surprise - expected).astype(np.float32).argsort(kind="stable")
    sums = chances[nearest].cumsum() - chances[nearest]
    count = max(1, int((sums < mass).sum()))
    near = np.zeros(chances.size, dtype=bool)
    near[nearest[:count]] = True
    return near


def leading(row: Row, count: int, chunk: int) -> tuple[Row, Numbers]:
    """The `count` likeliest in order, equals by token: logits and tokens.

    A chunk is every `size / chunk`-th token here, for so the maxima are taken fastest; all logits that reach the
    count-th greatest maximum lie in chunks whose maxima reach it, and at least `count` of them do.
    """
    strides = row.reshape(chunk, -1)
    maxima = strides.max(axis=0)
    if count >= maxima.size:
        return _sorted(row, np.arange(row.size), count)
    least = np.partition(maxima, -count)[-count]
    columns = (maxima >= least).nonzero()[0]
    near = strides[:, columns]
    line, at = (near >= least).nonzero()
    return _sorted(near[line, at], line * maxima.size + columns[at], count)


def _sorted(values: Row, tokens: Numbers, count: int) -> tuple[Row, Numbers]:
    """In one sort: the float's bits, made to order as integers do, stand above the token."""
    bits = values.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | (LOW - tokens)
    keys = -np.sort(-keys)[:count] if count < keys.size else np.sort(keys)[::-1]
    ordered = (keys >> 32).astype(np.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32), LOW - (keys & LOW)
