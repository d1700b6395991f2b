"""Orders of lending over the control link, beside the usual ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_node.pipeline.orders import CODEC as USUAL
from gpu_node.pipeline.orders import LayerCache, ring_ends
from gpu_node.pipeline.orders_lending import (
    CODEC,
    LENDING_ORDERS,
    Borrow,
    Lend,
    MoveToHost,
    Repay,
    TakeBack,
    lend_ends,
)
from wire.errors import BadPayload, OutOfBounds

LEND = Lend(1, 2, 3, 0, 10, 20, 16, "bfloat16", (LayerCache(2, 64, 64, None), LayerCache(2, 64, 64, 128)))
EXAMPLES = (
    LEND,
    Borrow(1, 2, 3, 1, 10, 20, "/tmp/a"),
    Borrow(1, 2, 3, 1, 10, 20, ("127.0.0.1", 8000)),
    MoveToHost(4, 2, 3, 0.5),
    Repay(5, 2, 3),
    TakeBack(6, 2, 3, 0),
)


@pytest.mark.parametrize("order", EXAMPLES)
def test_what_was_packed_is_unpacked_the_same(order: Any) -> None:
    assert CODEC.unpack(CODEC.pack(order)) == order


def test_the_codec_knows_all_orders() -> None:
    assert set(CODEC.kinds) == {*USUAL.kinds, *LENDING_ORDERS}
    assert {type(example) for example in EXAMPLES} == set(LENDING_ORDERS)


@pytest.mark.parametrize("changes", [{"dtype": "int4"}, {"first": -1}, {"layers": [[]]}, {"lease": 1.5}, {"more": 1}])
def test_other_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        CODEC.unpack(json.dumps(json.loads(CODEC.pack(LEND)) | changes).encode())
    with pytest.raises(OutOfBounds):
        CODEC.pack(Repay(1, 2, -3))


def test_links_of_lending_are_no_links_of_a_ring() -> None:
    ring = {ends for stages in range(1, 5) for stage in range(stages) for ends in ring_ends(stage, stages, 7)}
    lend = {lend_ends(holder, lender, 7) for holder in range(4) for lender in range(4)}
    assert len(lend) == 16 and not lend & ring
    with pytest.raises(ValueError, match="stages are counted"):
        lend_ends(0, 0x4000, 7)
