from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from gpu_node.engine.products.kernels.tensors import Look, Paged
from gpu_node.engine.products.kernels.weights import Unsuitable

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]  # slots of each row that hold something, its new tokens with them
    news: tuple[int, ...]  # new tokens of each row
    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    block_tokens: int = 8
    dtype: torch.dtype = torch.float32


def prepared(numbers: torch.Generator, case: Case) -> tuple[torch.Tensor, Paged]:
    """A pool whose unwritten slots hold NaN, tables in random order, queries."""
    needed = [-(-length // case.block_tokens) for length in case.lengths]
    free = torch.randperm(sum(needed) + 2, generator=numbers).tolist()
    tables = torch.zeros(len(needed), max(needed) + 1, dtype=torch.int64)
    shape = (len(free), case.kv_heads, case.block_tokens)
    keys = torch.full((*shape, case.key_dim), float("nan"), dtype=case.dtype).transpose(1, 2)
    values = torch.full((*shape, case.value_dim), float("nan"), dtype=case.dtype).transpose(1, 2)
    for row, (length, count) in enumerate(zip(case.lengths, needed, strict=True)):
        tables[row, :count] = torch.tensor([free.pop() for _ in range(count)])
        for slot in range(length):
            at = (tables[row, slot // case.block_tokens], slot % case.block_tokens)
            keys[at] = torch.randn(case.kv_heads, case.key_dim, generator=numbers).to(case.dtype)
            values[at] = torch.randn(case.kv_heads, case.value_dim, generator=numbers).to(case.dtype)
    pairs = list(enumerate(zip(case.lengths, case.news, strict=True)))
    rows = torch.tensor([row for row, (_, new) in pairs for _ in range(new)])
    positions = torch.tensor([place for _, (length, new) in pairs for place in range(length - new, length)])
    q = torch.randn(len(rows), case.heads, case.key_dim, generator=numbers)
    return q, Paged(keys, values, tables, rows, positions)


def reference(q: torch.Tensor, paged: Paged, look: Look) -> torch.Tensor:
    out = []
    block_tokens, kv_heads = paged.keys.shape[1:3]
    for token, (row, position) in enumerate(zip(paged.rows.tolist(), paged.positions.tolist(), strict=True)):
        begin = 0 if look.window is None else max(position + 1 - look.window, 0)
        slots = torch.arange(begin, position + 1)
        at = (paged.tables[row][slots // block_tokens], slots % block_tokens)
        sharing = q.shape[1] // kv_heads
        keys = paged.keys[at].float().repeat_interleave(sharing, dim=1)
        values = paged.values[at].float().repeat_interleave(sharing, dim=1)
        scores = torch.einsum("hd,thd->ht", q[token], keys) * look.scale
        if look.cap:
            scores = (scores / look.cap).tanh() * look.cap
        sinks = torch.full((q.shape[1], 1), -torch.inf) if look.sinks is None else look.sinks[:, None]
        weights = torch.cat([scores, sinks], dim=1).softmax(dim=1)[:, :-1]
        out.append(torch.einsum("ht,thd->hd", weights, values))
    return torch.stack(out)


def attended(kernels, q: torch.Tensor, paged: Paged, look: Look) -> torch.Tensor:
    y = torch.full((*q.shape[:2], paged.values.shape[3]), float("nan"))
    kernels.run(kernels.attend(q, paged, look, y))
    return y


def assert_equal(kernels, q: torch.Tensor, paged: Paged, look: Look) -> None:
    torch.testing.assert_close(attended(kernels, q, paged, look), reference(q, paged, look), rtol=2e-5, atol=5e-6)


CASES = [
    Case(lengths=(1,), news=(1,)),
    Case(lengths=(8, 9, 7, 40), news=(1, 1, 1, 1)),
    Case(lengths=(13, 30, 5), news=(13, 4, 1)),
    Case(lengths=(33, 2), news=(2, 2), heads=3, kv_heads=3, key_dim=24, value_dim=72, block_tokens=16),
    Case(lengths=(50,), news=(3,), heads=9, kv_heads=3, key_dim=64, value_dim=64, block_tokens=16),
    Case(lengths=(21,), news=(1,), heads=4, kv_heads=1, key_dim=128, value_dim=128, block_tokens=24),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_attention_equals_torch(kernels, numbers, case, dtype):
    q, paged = prepared(numbers, replace(case, dtype=dtype))
    assert_equal(kernels, q, paged, Look(scale=case.key_dim**-0.5))


@pytest.mark.parametrize("window", [1, 3, 8, 11, 100])
def test_a_window_hides_what_lies_before_it(kernels, numbers, window):
    q, paged = prepared(numbers, Case(lengths=(30, 12, 17), news=(1, 12, 5)))
    assert_equal(kernels, q, paged, Look(scale=0.25, window=window))


def test_soft_caps_and_sinks(kernels, numbers):
    q, paged = prepared(numbers, Case(lengths=(30, 12), news=(2, 3)))
    assert_equal(kernels, q * 20, paged, Look(scale=0.25, cap=30.0))
    sinks = torch.randn(6, generator=numbers) * 3
    assert_equal(kernels, q, paged, Look(scale=0.25, sinks=sinks))
    assert_equal(kernels, q, paged, Look(scale=0.25, sinks=sinks + 200, window=5, cap=50.0))


def test_great_scores_do_not_overflow(kernels, numbers):
    q, paged = prepared(numbers, Case(lengths=(30,), news=(2,)))
    assert_equal(kernels, q * 1e4, paged, Look(scale=1.0))


def test_queries_and_results_may_lie_within_wider_rows(kernels, numbers):
    q, paged = prepared(numbers, Case(lengths=(19,), news=(3,)))
    fused = torch.randn(3, 6 * 16 + 64, generator=numbers)
    fused[:, :96] = q.view(3, 96)
    y = torch.zeros(3, 120)
    kernels.run(kernels.attend(fused[:, :96].view(3, 6, 16), paged, Look(0.25), y[:, :96].view(3, 6, 16)))
    torch.testing.assert_close(y[:, :96].view(3, 6, 16), reference(q, paged, Look(0.25)), rtol=2e-5, atol=5e-6)
    assert not y[:, 96:].any()


def test_poison_stays_with_those_who_see_it(kernels, numbers):
    q, paged = prepared(numbers, Case(lengths=(20, 20), news=(2, 2)))
    paged.values[paged.tables[0, 2], 3, 1, 5] = float("nan")  # the last slot of row 0, one key head of two
    found = attended(kernels, q, paged, Look(0.25))
    assert found.isnan().nonzero().tolist() == [[1, 3, 5], [1, 4, 5], [1, 5, 5]]
    paged.keys[paged.tables[1, 0], 0, 0, 0] = float("nan")
    found = attended(kernels, q, paged, Look(0.25))
    assert found[2:, :3].isnan().all()
    assert not found[2:, 3:].isnan().any()


def test_what_does_not_fit_is_refused(kernels, numbers):
    q, paged = prepared(numbers, Case(lengths=(9,), news=(1,)))
    y = torch.zeros(1, 6, 16)
    refused = [
        (q[:, :5], paged, y[:, :5]),
        (q, replace(paged, values=paged.values.half()), y),
        (q, replace(paged, rows=paged.rows.int()), y),
        (q, replace(paged, positions=paged.positions.repeat(2)), y),
        (q, paged, y.half()),
        (q[..., :8], paged, y),
        (q, replace(paged, keys=paged.keys[:, :6], values=paged.values[:, :6]), y),
    ]
    for bad_q, bad_paged, bad_y in refused:
        with pytest.raises(Unsuitable):
            kernels.attend(bad_q, bad_paged, Look(0.25), bad_y)
    with pytest.raises(Unsuitable):
        kernels.attend(q, paged, Look(0.25, sinks=torch.zeros(5)), y)
