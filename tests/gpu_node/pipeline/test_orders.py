"""Orders come out as they went in, and nothing else comes out."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from gpu_node.errors import UsageError
from gpu_node.pipeline import orders
from gpu_node.pipeline.control import CONTROL_SETTINGS, ControlLink
from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.order_codec import MESSAGE_BYTES, OrderCodec
from gpu_node.pipeline.orders import CODEC, control_ends, ring_ends
from tests.gpu_node.pipeline.pairs import header, linked
from wire.errors import BadPayload, OutOfBounds

LOAD = orders.Load(3, "/models/tiny", 2, 5, orders.LoadWords(dtype="bfloat16", threads=1), 1 << 30, 0.5, True)
CACHES = (orders.LayerCache(2, 8, 8, None), orders.LayerCache(2, 8, 8, 64))
FORMS = (("dense", 900), ("embedding", 100))
LOADED = orders.Loaded(3, 1000, 64, 32, 99, "bfloat16", "float32", "cpu", CACHES, FORMS, (0.25,), 1, 500, 0.5)
EXAMPLES: list[Any] = [
    LOAD,
    orders.Load(4, "/m", 0, 1, orders.LoadWords()),
    orders.Take(5, 3, 7, 1, 3, 16, 100, 90, ("127.0.0.1", 4711), orders.StepLimits(8, 512, 4), 2.5),
    orders.Take(6, 3, 7, 0, 1, 16, 100, 100, "/run/s/1.sock"),
    orders.Release(7),
    orders.Stop(8),
    orders.Hello(4711, "/run/s/1.sock", "cpu", 1 << 34, 1 << 33, 1.5),
    orders.Progress(3, 10, 20),
    LOADED,
    orders.Taken(5, 7, 1 << 20, 1 << 21),
    orders.Done(8),
    orders.Failed(3, "no_room_beside", "It takes 5 bytes and 4 are left."),
    orders.Busy(1.5),
    orders.Report(7, 100, 4000, 1.25, 1, 2, 3, 4, "a neighbour is gone", 61.5),
]


def test_every_order_has_an_example() -> None:
    assert {type(example) for example in EXAMPLES} == set(CODEC.kinds)


@pytest.mark.parametrize("order", EXAMPLES, ids=lambda order: type(order).__name__)
def test_an_order_comes_out_as_it_went_in(order: Any) -> None:
    data = CODEC.pack(order)
    assert CODEC.unpack(data) == order
    assert CODEC.unpack(memoryview(bytearray(data))) == order


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(CODEC.pack(LOAD)) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"order":"Format"}',
        b'{"order":["Load"]}',
        b'{"order":"Stop"}',
        b'{"order":"Stop","number":1,"more":2}',
        b'{"order":"Stop","number":-1}',
        b'{"order":"Stop","number":1.0}',
        b'{"order":"Stop","number":true}',
        b'{"order":"Stop","number":9223372036854775808}',
        b'{"order":"Busy","seconds":NaN}',
        b'{"order":"Busy","seconds":1e400}',
        b'{"order":"Busy","seconds":"1"}',
        changed(path="a\0b"),
        changed(path="a" * 9000),
        changed(path=None),
        changed(load={"dtype": "float32"}),
        changed(load=json.loads(CODEC.pack(LOAD))["load"] | {"dtype": "float8"}),
        changed(drop_current=1),
        changed(budget_bytes="all"),
        json.dumps(json.loads(CODEC.pack(EXAMPLES[2])) | {"next_place": ["localhost"]}).encode(),
        json.dumps(json.loads(CODEC.pack(LOADED)) | {"errors": [0.5] * 9000}).encode(),
        b" " * (MESSAGE_BYTES + 1),
    ],
)
def test_what_is_no_order_is_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        CODEC.unpack(data)


@settings(max_examples=200, deadline=None)
@given(some.sampled_from(EXAMPLES), some.data())
def test_bytes_that_changed_are_an_order_or_refused(order: Any, draw: some.DataObject) -> None:
    data = bytearray(CODEC.pack(order))
    data[draw.draw(some.integers(0, len(data) - 1))] = draw.draw(some.integers(0, 255))
    with suppress(BadPayload):
        assert isinstance(CODEC.unpack(data), CODEC.kinds)


def test_what_would_be_refused_is_not_sent() -> None:
    with pytest.raises(OutOfBounds, match="Failed"):
        CODEC.pack(orders.Failed(1, "error", "x" * 9000))
    with pytest.raises(OutOfBounds, match="Busy"):
        CODEC.pack(orders.Busy(float("inf")))


def test_names_are_of_one_order_each() -> None:
    with pytest.raises(ValueError, match="name of its own"):
        OrderCodec((orders.Stop, orders.Stop))


def test_orders_go_both_ways_over_a_link() -> None:
    with linked(CONTROL_SETTINGS) as (left, right):
        head, worker = ControlLink(left), ControlLink(right)
        head.send(LOAD)
        assert worker.receive(5) == LOAD
        worker.send(LOADED)
        assert head.receive(5) == LOADED


def test_a_frame_that_is_no_order_ends_the_link() -> None:
    with linked(CONTROL_SETTINGS) as (left, right):
        left.send(header(4), b"what")
        with pytest.raises(LinkFault, match="JSON"):
            ControlLink(right).receive(5)
        assert isinstance(right.end, LinkFault)


def test_a_ring_goes_from_the_head_to_the_head() -> None:
    assert ring_ends(0, 1, 5) == (LinkEnds(HEAD, 0, 5), LinkEnds(0, HEAD, 5))
    assert ring_ends(0, 3, 5) == (LinkEnds(HEAD, 0, 5), LinkEnds(0, 1, 5))
    assert ring_ends(1, 3, 5) == (LinkEnds(0, 1, 5), LinkEnds(1, 2, 5))
    assert ring_ends(2, 3, 5) == (LinkEnds(1, 2, 5), LinkEnds(2, HEAD, 5))


def test_workers_have_numbers_that_no_stage_has() -> None:
    assert control_ends(2) == LinkEnds(0x8002, HEAD)
    with pytest.raises(ValueError, match="workers"):
        control_ends(0x4000)


@pytest.mark.parametrize("place", ["/run/s/1.sock", ("127.0.0.1", 4711), ("::1", 80)])
def test_a_place_is_told_in_one_word(place: orders.AnyPlace) -> None:
    assert orders.place_of(orders.place_text(place)) == place


@pytest.mark.parametrize("text", ["", "1.sock", "host:", "host:http", "host:65536", ":80"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="place"):
        orders.place_of(text)
