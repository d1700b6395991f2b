"""The vectors that other languages test with are what this one writes and reads."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.wire import vector_values as values
from tests.wire.vector_files import FOLDER, WRITERS, read_vectors
from wire.beacon import unpack_beacon
from wire.errors import RemoteError
from wire.frames import FrameType
from wire.messages import MESSAGES, decode_chunk, decode_message
from wire.tensors import unpack_tensor_header

WRITTEN = {name: read_vectors((FOLDER / name).read_text()) for name in WRITERS}


def _message(name: str, data: bytes) -> Any:
    kind = FrameType[name.split("/")[0]]
    return decode_chunk(data) if kind is FrameType.DATA else decode_message(kind, data)


def _tensor(_: str, data: bytes) -> Any:
    return unpack_tensor_header(data, zlib.crc32)


def _beacon(name: str, data: bytes) -> Any:
    token = None if "open" in name else values.TOKEN
    return unpack_beacon(data, token)[0], token


SHELF: dict[str, tuple[Callable[[str, bytes], Any], dict[str, Any]]] = {
    "messages.hex": (_message, values.MESSAGES),
    "tensors.hex": (_tensor, values.TENSORS),
    "beacons.hex": (_beacon, values.BEACONS),
}


def _signed_with(*signs: str) -> Iterator[Any]:
    for file in SHELF:
        for name, (sign, data) in WRITTEN[file].items():
            if sign in signs:
                yield pytest.param(file, name, data, id=f"{file}:{name}")


@pytest.mark.parametrize("file", WRITERS)
def test_the_files_are_what_is_written_today(file: str) -> None:
    # After a change that is meant: python -m tests.wire.vector_files
    assert (FOLDER / file).read_text() == "".join(WRITERS[file]())


@pytest.mark.parametrize(("file", "name", "data"), [*_signed_with("=", "~")])
def test_each_vector_is_read_as_its_value(file: str, name: str, data: bytes) -> None:
    read, meant = SHELF[file]
    same = values.ALSO[name][1] if name in values.ALSO else name
    assert read(name, data) == (meant[same] if same else values.OTHERWISE[name])


@pytest.mark.parametrize(("file", "name", "data"), [*_signed_with("!")])
def test_each_bad_vector_is_refused(file: str, name: str, data: bytes) -> None:
    with pytest.raises(RemoteError):
        SHELF[file][0](name, data)


def test_every_message_has_a_vector() -> None:
    assert {name.split("/")[0] for name in values.MESSAGES} >= {kind.name for kind in MESSAGES}


def test_one_vector_read_by_hand() -> None:
    """Byte by byte as the page has it, without the codec."""
    message = b"\x00\x00\x01a\x01\x00\x00\x00\x07\x01"  # index, position, text, ids, sample
    minus_half = b"\x09\x07\xbf\xe0\x00\x00\x00\x00\x00\x00"
    minus_infinity = b"\x01\x08"  # the default is left out
    with_text = b"\x0b" + minus_half[1:] + b"\x01a"
    logprob = minus_half + b"\x02" + with_text + minus_infinity
    assert WRITTEN["messages.hex"]["TOKENS/logprobs"] == ("=", message + b"\x01" + bytes([len(logprob)]) + logprob)
