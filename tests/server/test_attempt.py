"""One attempt: what a node is asked, what its events become, and the seam, with a backend that follows a script."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from server.attempt import NoWayOn, first_call, plan, tell
from server.backends.base import Call
from server.course import Course
from server.errors import NodeBroken, NodeError, NodeRefused, NodeStalled
from server.exchange import AskRequest, Begun, Embedding, Token
from server.nodes import Node
from tests.server.scripted_backend import (
    ScriptedBackend,
    closed_template,
    open_template,
    trimming_template,
)
from tests.server.scripted_nodes import MODEL, chat, node_of, report_of, seat_of
from tests.server.telling import DONE, GREEDY, PATIENCE, RENDERS, Telling, course_of, tokens

OURS = node_of("a", report_of(continues_assistant=True))


async def planned(course: Course, node: Node = RENDERS, backend: ScriptedBackend | None = None) -> tuple[str, Call]:
    return await plan(course, seat_of(node), backend or ScriptedBackend())


# --- what is asked


async def test_nothing_told_yet_is_a_plain_first_try_then_a_plain_retry() -> None:
    """Nothing told yet: it is a plain retry."""
    request = chat("hi", options={"temperature": 0.5}, fields={"keep_alive": "1h", "tools": [{}]})
    for attempts, way in ((0, "first"), (1, "retry"), (2, "retry")):
        backend = ScriptedBackend()
        got, call = await planned(course_of(request, attempts=attempts), RENDERS, backend)
        assert got == way
        assert call == Call("chat", MODEL, request.messages, "", request.options, request.fields)
        assert backend.rendered == []


async def test_the_model_is_asked_for_by_the_nodes_own_spelling() -> None:
    seat = seat_of(node_of("a", report_of(["Qwen:1B"])))
    assert first_call(course_of(), seat).model == "Qwen:1B"


async def test_where_the_template_stays_open_the_chat_goes_on() -> None:
    """chat: render(messages + text) == render(messages) + text, both asked of that node."""
    request = chat("hi", options={"num_predict": 10})
    backend = ScriptedBackend(template=open_template)
    way, call = await planned(course_of(request, told=" so far"), RENDERS, backend)
    assert way == "chat"
    assert call.continues
    assert list(call.messages) == [*request.messages, {"role": "assistant", "content": " so far"}]
    assert call.options == {"num_predict": 6}
    assert len(backend.rendered) == 2


def relay_node(**changes: Any) -> Node:
    return node_of("r", report_of(continues_assistant=True, renders=True, **changes), kind="relay")


def told_by_a_relay_node(request: AskRequest) -> Course:
    course = course_of(request)
    course.told.add(Token("sö", tokens=2, ids=(7, 8)))
    course.copy, course.kind = seat_of(relay_node()).copy, "relay"
    return course


async def test_where_the_tokens_are_known_the_same_is_asked_behind_them() -> None:
    request = chat("hi", options={"num_predict": 10, "seed": 3}, fields={"format": "json"})
    course = told_by_a_relay_node(request)
    way, call = await planned(course, relay_node())
    assert way == "exact"
    assert call == replace(first_call(course, seat_of(relay_node())), begun=Begun((7, 8), 3))
    assert call.options == {"num_predict": 10, "seed": 3}, "the node counts the tokens so far itself"
    assert course.told.ids == [7, 8]


@pytest.mark.parametrize("digest", ["d2", ""])
async def test_tokens_mean_something_to_the_same_model_only(digest: str) -> None:
    course = told_by_a_relay_node(chat("hi"))
    if not digest:
        course.copy = replace(course.copy, digest="") if course.copy else None
    way, call = await planned(course, relay_node(digest=digest))
    assert (way, call.begun) == ("chat", None)
    assert course.told.ids is None, "what follows now follows the text"


async def test_a_request_without_a_seed_keeps_the_one_it_was_given() -> None:
    """So that another node makes the draws that this one would have made."""
    for options in ({}, {"seed": -1}, {"temperature": 0.7}):
        course = course_of(chat("hi", options=options))
        first = first_call(course, seat_of(relay_node()))
        assert first.options == {**options, "seed": course.seed} and course.seed >= 0
        assert first_call(course, seat_of(relay_node())) == first
        assert first_call(course, seat_of(RENDERS)).options == options, "other kinds are asked as the client asked"
    assert first_call(course_of(chat("hi", options={"seed": 3})), seat_of(relay_node())).options == {"seed": 3}
    assert course_of().seed != course_of().seed


async def test_tokens_that_nobody_heard_are_asked_for_again() -> None:
    course = course_of(chat("hi"), attempts=1)
    course.told.add(Token("", tokens=1, ids=(7,)))
    way, call = await planned(course, relay_node())
    assert (way, call.begun, course.told.tokens, course.told.ids) == ("retry", None, 0, [])


async def test_a_prompt_that_no_longer_fits_fails_loudly() -> None:
    """`truncate: false` is sent along."""
    for template in (open_template, closed_template):
        _, call = await planned(course_of(told="so far"), RENDERS, ScriptedBackend(template=template))
        assert call.fields["truncate"] is False


@pytest.mark.parametrize(("template", "told"), [(closed_template, "so far"), (closed_template, "\n")])
async def test_where_the_template_closes_the_prompt_is_taken_raw(template: Callable[[Call], str], told: str) -> None:
    """raw: `/api/generate`, `raw: true`, prompt = render(messages) + text; also where the text so far is "\\n"."""
    request = chat("hi", options={"num_predict": 10, "seed": 3}, fields={"keep_alive": "1h"})
    way, call = await planned(course_of(request, told=told), RENDERS, ScriptedBackend(template=template))
    assert way == "raw"
    assert (call.operation, call.messages) == ("generate", ())
    assert call.prompt == "<user>hi</><assistant>\n" + told
    assert call.options == {"num_predict": 6, "seed": 3}
    assert call.fields == {"raw": True, "truncate": False, "keep_alive": "1h"}


@pytest.mark.parametrize(("told", "way"), [("so far", "chat"), ("so far ", "raw")])
async def test_a_template_that_trims_is_open_only_where_nothing_is_trimmed(told: str, way: str) -> None:
    """White space is kept as it was."""
    got, call = await planned(course_of(told=told), RENDERS, ScriptedBackend(template=trimming_template))
    assert got == way
    assert told in (call.prompt or call.messages[-1]["content"])


async def test_a_spelled_out_beginning_is_left_out_where_the_tokenizer_adds_it() -> None:
    def with_beginning(call: Call) -> str:
        return "<bos>" + closed_template(call)

    shown = {"model_info": {"tokenizer.ggml.add_bos_token": True}}
    backend = ScriptedBackend(template=with_beginning, shown=shown)
    _, call = await planned(course_of(told="so"), RENDERS, backend)
    assert call.prompt.startswith("<user>")
    _, call = await planned(course_of(told="so"), RENDERS, ScriptedBackend(template=with_beginning))
    assert call.prompt.startswith("<bos>")


async def test_the_clients_own_last_message_is_extended() -> None:
    """The text so far extends that message; it never becomes a second one."""
    request = chat("hi", "hel")
    way, call = await planned(course_of(request, told="lo"), RENDERS)
    assert (way, len(call.messages), call.messages[-1]["content"]) == ("chat", 2, "hello")


async def test_a_raw_prompt_goes_on_as_it_is() -> None:
    request = chat(operation="generate", messages=(), prompt="<s>once", fields={"raw": True})
    backend = ScriptedBackend(shown={"model_info": {"tokenizer.ggml.add_bos_token": True}})
    way, call = await planned(course_of(request, told=" upon"), RENDERS, backend)
    assert (way, call.prompt, call.fields["raw"], backend.rendered) == ("raw", "<s>once upon", True, [])


async def test_our_own_node_is_taken_at_its_word() -> None:
    """Our own GPU node always continues a last assistant message, and says so: nothing is rendered."""
    backend = ScriptedBackend(template=closed_template)
    way, call = await planned(course_of(told="so far"), OURS, backend)
    assert (way, call.continues, backend.rendered) == ("chat", True, [])


async def test_kind_openai_is_continued_by_setting() -> None:
    vllm = node_of("a", kind="openai", continues_final_message=True)
    way, call = await planned(course_of(told="so far"), vllm)
    assert (way, call.continues) == ("chat", True)


async def test_a_replay_asks_for_all_of_it_again() -> None:
    """replay: the same request again, with the whole of `num_predict`."""
    request = chat("hi", options={**GREEDY, "num_predict": 10}, fields={"format": "json"})
    way, call = await planned(course_of(request, told="so far"), RENDERS)
    assert way == "replay"
    assert call == Call("chat", MODEL, request.messages, "", request.options, request.fields)


async def test_where_no_way_fits_the_node_is_left_alone() -> None:
    """None fits: not the node's fault, and nothing was asked."""
    backend = ScriptedBackend()
    with pytest.raises(NoWayOn) as caught:
        await planned(course_of(chat("hi"), told="so far"), node_of("a"), backend)
    assert not caught.value.strike
    assert (backend.calls, backend.rendered) == ([], [])


async def test_a_rendering_is_kept_for_the_same_digest_and_version_and_no_further() -> None:
    """A rendering may be kept for the same digest, Ollama version and messages, no further."""
    course = course_of(told="so far")
    backend = ScriptedBackend()
    for name, changes in (("a", {}), ("b", {}), ("c", {"version": "0.33.0"}), ("d", {"digest": "d2"})):
        await planned(course, node_of(name, report_of(renders=True, **changes)), backend)
    plain = [node for node, call in backend.rendered if call.messages[-1]["role"] == "user"]
    longer = [node for node, call in backend.rendered if call.messages[-1]["role"] == "assistant"]
    assert plain == ["a", "c", "d"]
    assert longer == ["a", "b", "c", "d"], "the answer so far is asked of each node itself"


async def test_a_node_that_hangs_over_a_rendering_has_failed() -> None:
    with pytest.raises(NodeStalled):
        await planned(course_of(told="so"), RENDERS, ScriptedBackend(render_error=NodeStalled("x", "render")))


@pytest.mark.parametrize("error", [NodeBroken("it does not render"), NodeRefused("what?", 400)])
async def test_a_node_that_does_not_render_as_it_says_may_still_replay(error: NodeError) -> None:
    """What a node really does decides: chat and raw do not fit, replay does, and nobody gets a strike."""
    backend = ScriptedBackend(render_error=error)
    way, _ = await planned(course_of(chat("hi", options=GREEDY), told="so"), RENDERS, backend)
    assert way == "replay"
    with pytest.raises(NoWayOn):
        await planned(course_of(chat("hi", options={"temperature": 1}), told="so"), RENDERS, backend)


# --- what is told


async def test_a_plain_answer_is_passed_on_batch_by_batch() -> None:
    told = await Telling(course_of(), "first", [tokens("he", "l"), [Token("lo", tokens=2), DONE]]).run()
    assert [list(batch) for batch in told.batches] == [tokens("he", "l"), [Token("lo", tokens=2)]]
    assert told.attempt.done == DONE
    assert (told.attempt.tokens, told.course.told.text, told.course.told.tokens) == (4, "hello", 4)
    assert (told.attempt.first_at, told.attempt.last_at, told.course.first_token_at) == (1.0, 2.0, 1.0)
    assert told.backend.closed == 1


async def test_the_copy_that_told_the_first_token_is_kept() -> None:
    told = await Telling(course_of(), "first", [tokens("x"), [DONE]]).run()
    assert told.course.copy == told.attempt.seat.copy
    assert told.course.kind == "ollama"
    silent = await Telling(course_of(), "first", [[DONE]]).run()
    assert silent.course.copy is None


async def test_delivered_tokens_renew_the_outage() -> None:
    course = course_of()
    course.outage.failed(RENDERS.id)
    await Telling(course, "first", [tokens("x"), [DONE]]).run()
    assert course.outage.failures == 0


async def test_embeddings_are_passed_on() -> None:
    told = await Telling(course_of(), "first", [[Embedding([[1.0]]), DONE]]).run()
    assert told.batches == [[Embedding([[1.0]])]]


async def test_a_node_that_breaks_leaves_what_was_told() -> None:
    telling = Telling(course_of(), "first", [tokens("he"), NodeBroken("cut")])
    with pytest.raises(NodeBroken):
        await telling.run()
    assert (telling.course.told.text, telling.attempt.done, telling.backend.closed) == ("he", None, 1)


async def test_leaving_closes_the_stream_to_the_node() -> None:
    telling = Telling(course_of(), "first", [tokens("a"), tokens("b"), [DONE]])
    stream = tell(telling.course, telling.attempt, Call("chat", MODEL), telling.backend, PATIENCE, telling.clock)
    async with aclosing(stream) as batches:
        async for _ in batches:
            break
    assert telling.backend.closed == 1
    assert telling.course.told.text == "a"


# --- how long the node keeps its model


@pytest.mark.parametrize(("fields", "kept"), [({}, "2h"), ({"keep_alive": "5m"}, "5m"), ({"keep_alive": 0}, 0)])
@pytest.mark.parametrize("template", [open_template, closed_template])
async def test_the_owners_time_goes_with_whatever_says_none(fields: Any, kept: Any, template: Any) -> None:
    """At the first try, and however another node goes on."""
    node = node_of("a", report_of(renders=True), keep_alive="2h")
    request = chat("hi", fields=fields)
    assert first_call(course_of(request), seat_of(node)).fields["keep_alive"] == kept
    way, call = await planned(course_of(request, told=" so far"), node, ScriptedBackend(template=template))
    assert way == ("chat" if template is open_template else "raw")
    assert call.fields["keep_alive"] == kept
