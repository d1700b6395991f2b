"""EMBED: the vectors of texts, in order, in frames that fit."""

from __future__ import annotations

import array

import pytest

from gpu_node.engine.sequence import Embeddings
from gpu_node.relay.embeddings import VECTORS_BYTES, frames_of, little_endian
from tests.gpu_node.relay.relayed import failure, scripted
from tests.gpu_node.serving import NAME
from transport.errors import Refused
from wire.messages import encode_message
from wire.messages_session import ErrorCode
from wire.messages_work import Embed, Vectors


def numbers(data: bytes | memoryview) -> list[float]:
    return array.array("f", bytes(data)).tolist()


async def test_each_text_has_its_vector() -> None:
    async with scripted() as (here, fleet):
        link = await here.connect()
        asked = Embed(NAME, ("a", "bcd"), 50, False, True, 0, "ann", "salt", keep_alive_seconds=9.0)
        vectors = await link.ask(asked)
        assert isinstance(vectors, Vectors)
        assert (vectors.total, vectors.dimensions, vectors.prompt_tokens) == (2, 2, 4)
        assert numbers(vectors.data) == [1.0, 1.0, 3.0, 1.0]
        request = fleet.script(NAME).embeddings[-1]
        assert (request.context_tokens, request.truncate, request.normalise) == (50, False, True)
        assert request.caller.endswith("ann") and request.cache_salt.endswith("salt")
        assert here.host.seconds_left == 9.0
        one = await link.ask(Embed(NAME, ("a",), normalise=False, dimensions=1))
        assert isinstance(one, Vectors) and one.dimensions == 1


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        (Embed("nobody", ("a",)), ErrorCode.MODEL_NOT_FOUND, "model"),
        (Embed(NAME, ("a", "")), ErrorCode.BAD_REQUEST, "texts"),
        (Embed(NAME, ("a",), dimensions=3), ErrorCode.BAD_REQUEST, "dimensions"),
        (Embed(NAME, ("a" * 50,), 20, truncate=False), ErrorCode.CONTEXT_EXCEEDED, None),
    ],
)
async def test_what_has_no_vector_is_refused(asked: Embed, code: ErrorCode, field: str | None) -> None:
    async with scripted() as (here, _):
        error = await failure(await here.connect(), asked)
        assert isinstance(error, Refused) and (error.code, error.details.get("field")) == (code, field)


def test_many_vectors_take_several_frames() -> None:
    width = 1000
    found = Embeddings(tuple((float(number),) * width for number in range(600)), 7)
    frames = list(frames_of(found))
    assert [last for _, last in frames] == [False] * (len(frames) - 1) + [True]
    assert len(frames) == -(-600 // (VECTORS_BYTES // (4 * width)))
    at = 0
    for vectors, _ in frames:
        encode_message(vectors)
        assert vectors.first == at
        told = numbers(vectors.data)
        at += len(told) // width
        assert told[::width] == [float(number) for number in range(vectors.first, at)]
    assert at == 600


def test_numbers_travel_with_the_lowest_byte_first() -> None:
    assert little_endian([(1.0, -2.0)]) == bytes.fromhex("0000803f000000c0")
