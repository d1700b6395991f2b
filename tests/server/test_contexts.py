"""The context of a model at a node: who may change it, when, and how a wrong wish is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from server.contexts import default_context, fits_context, largest_context, options_for, pin_context, unpin_context
from server.nodes import ModelCopy
from server.roster import Seat
from tests.server.scripted_nodes import MODEL, chat, node_of, report_of, seat_of


def loaded(context: int | None, version: str = "0.24.0") -> Seat:
    return seat_of(node_of("a", report_of(resident=[MODEL], context=context, version=version)))


UNLOADED = node_of("a")


def asked(seat: Seat, **options: int) -> dict[str, Any]:
    """What the node is asked for by a request with these options, which gets its answer."""
    request = chat("hi", options=options)
    pin_context(seat, request)
    return dict(options_for(seat, request.options))


def test_num_ctx_is_fixed_per_node() -> None:
    """`num_ctx` is fixed per node, since another value reloads the model: the first larger one is kept for all."""
    seat = seat_of(UNLOADED)
    assert asked(seat, seed=1) == {"seed": 1}
    assert asked(seat, seed=1, num_ctx=8192) == {"seed": 1, "num_ctx": 8192}
    assert asked(seat) == {"num_ctx": 8192}
    assert asked(seat, num_ctx=5000) == {"num_ctx": 8192}


@pytest.mark.parametrize("wanted", [512, 4096])
def test_what_every_node_has_is_not_asked_for(wanted: int) -> None:
    seat = seat_of(UNLOADED)
    assert asked(seat, num_ctx=wanted) == {}
    assert seat.memory.pinned_contexts == {}


def test_old_nodes_have_less_unless_told() -> None:
    """A request that needs more than a node has is never cut short in silence."""
    old = seat_of(node_of("a", report_of(version="0.6.0")))
    assert asked(old, num_ctx=2048) == {}
    assert asked(old, num_ctx=4096) == {"num_ctx": 4096}
    assert default_context(seat_of(node_of("a", report_of(version="0.6.7")))) == 4096
    ours = node_of("a", report_of(version="0.1.0", continues_assistant=True))
    assert default_context(seat_of(ours)) == 4096
    assert default_context(seat_of(node_of("a", report_of(version="")))) == 4096


def test_a_model_that_was_loaded_with_more_keeps_it() -> None:
    """Another value reloads the model and forgets all conversations: the node's own is repeated."""
    seat = loaded(32768)
    assert asked(seat, num_ctx=8192) == {"num_ctx": 32768}
    assert asked(seat) == {"num_ctx": 32768}


def test_a_node_that_does_not_tell_its_context_gets_what_is_wanted() -> None:
    assert asked(loaded(None), num_ctx=8192) == {"num_ctx": 8192}


def test_a_request_is_never_changed() -> None:
    request = chat("hi", options={"num_ctx": 100, "num_predict": 9})
    asked(seat_of(UNLOADED), **request.options)
    assert request.options == {"num_ctx": 100, "num_predict": 9}


def test_a_wish_that_got_no_answer_is_taken_back() -> None:
    """Or one request for a context that cannot be loaded would break the node for everybody."""
    seat = seat_of(UNLOADED)
    pin = pin_context(seat, chat("hi", options={"num_ctx": 2_000_000}))
    unpin_context(seat, pin)
    assert asked(seat, seed=1) == {"seed": 1}
    asked(seat, num_ctx=8192)
    unpin_context(seat, pin)  # another one's pin stays
    assert asked(seat) == {"num_ctx": 8192}


def test_more_than_the_model_was_trained_for_does_not_fit() -> None:
    seat = seat_of(UNLOADED)
    seat.copy = ModelCopy(MODEL, "d", listing={"details": {"context_length": 8192}})
    assert largest_context(seat) == 8192
    assert fits_context(seat, 8192)
    assert not fits_context(seat, 8193)


@pytest.mark.parametrize("listing", [{}, {"details": None}, {"details": {"context_length": "many"}}])
def test_a_node_that_lists_no_length_is_taken_at_its_word_later(listing: dict[str, Any]) -> None:
    seat = seat_of(UNLOADED)
    seat.copy = ModelCopy(MODEL, "d", listing=listing)
    assert fits_context(seat, 1_000_000)


def test_other_kinds_of_nodes_decide_about_num_ctx_themselves() -> None:
    """A server with one context refuses another by its own word; nothing of ours is pinned there."""
    seat = seat_of(node_of("a", kind="openai"))
    assert asked(seat, num_ctx=8192) == {"num_ctx": 8192}
    assert asked(seat, seed=1) == {"seed": 1}
