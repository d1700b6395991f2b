"""Every error of the node has its code, and what a program needs to react to it."""

from __future__ import annotations

import pytest

from gpu_node import errors
from gpu_node.errors import NodeError
from gpu_node.relay.errors import CODES, Failed, Failure, failure_of, shortened
from wire.messages import encode_message
from wire.messages_session import Error, ErrorCode


def leaves(kind: type[NodeError]) -> list[type[NodeError]]:
    found = [kind]
    for child in kind.__subclasses__():
        found += leaves(child)
    return [one for one in found if one.__module__ == errors.__name__]


def test_every_leaf_is_in_the_table_and_none_is_hidden_by_its_parent() -> None:
    kinds = [kind for kind, _ in CODES]
    unnamed = {errors.UsageError}  # never raised by a request
    unnamed |= {errors.StageLost, errors.BlocksLost}  # the engine mends these, and no request hears of them
    assert set(leaves(NodeError)) - unnamed == set(kinds)
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.RequestError("no", status=404, field="model"), ErrorCode.MODEL_NOT_FOUND),
        (errors.RequestError("no", status=409), ErrorCode.BAD_REQUEST),
        (errors.ContextExceeded(), ErrorCode.CONTEXT_EXCEEDED),
        (errors.UnknownHandle(3), ErrorCode.UNKNOWN_HANDLE),
        (errors.NodeStopping(), ErrorCode.STOPPING),
        (errors.UsageError("?"), ErrorCode.INTERNAL),
    ],
)
def test_codes(error: NodeError, expected: ErrorCode) -> None:
    assert failure_of(error).code is expected


def test_details_are_there_where_they_are_known() -> None:
    assert dict(failure_of(errors.NoRoom("full", free_bytes=5, needed_bytes=9)).details) == {
        "free_bytes": 5, "needed_bytes": 9,
    }  # fmt: skip
    assert failure_of(errors.NoRoom("full")).details == ()
    assert dict(failure_of(errors.RequestError("no", field="prompt")).details)["field"] == "prompt"
    assert failure_of(errors.NodeBusy()).retry_after_ms == 1000


def test_a_failure_that_is_passed_on_stays_what_it_was() -> None:
    failure = Failure(ErrorCode.BUSY, "later", 5, (("a", 1),))
    assert failure_of(Failed(failure)) is failure


@pytest.mark.parametrize("text", ["é" * 2000, "\ud800" * 900, "😀" * 300, ""])
def test_any_text_fits_its_frame(text: str) -> None:
    encode_message(Error(ErrorCode.INTERNAL, shortened(text)))
    assert text != "é" * 2000 or len(shortened(text)) == 512
