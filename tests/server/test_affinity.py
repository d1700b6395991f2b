"""Which node holds which conversation: keys, memories, and what is learned of what a node really keeps."""

from __future__ import annotations

from typing import Any

import pytest

from server.affinity import (
    HELD_PER_NODE,
    KEYS_PER_CONVERSATION,
    Conversation,
    Held,
    Match,
    Memories,
    NodeMemory,
    ReturnRate,
    answer_key,
    continued_keys,
    conversation,
    loss_seconds,
    was_warm,
)
from server.exchange import AskRequest
from server.nodes import ModelKey, NodeId
from tests.server.scripted_nodes import chat

A, B = NodeId("a"), NodeId("b")
QWEN, GEMMA = ModelKey("qwen"), ModelKey("gemma")
DIGEST = "d1"
SYSTEM = "You are a helpful assistant."


def held_after(memory: NodeMemory, request: AskRequest, answer: str, at: float = 0.0, model: ModelKey = QWEN) -> Held:
    """The node answers the request and holds what comes of it."""
    talk = conversation(request)
    held = Held(continued_keys(talk, answer), model, DIGEST, talk.tokens + 10, at)
    memory.write(held, talk.prefixes)
    return held


def found(memory: NodeMemory, request: AskRequest, digest: str = DIGEST) -> Match | None:
    return memory.find(conversation(request).prefixes, digest)


@pytest.fixture
def memory() -> NodeMemory:
    return Memories().of(A)


def test_the_next_turn_finds_its_node(memory: NodeMemory) -> None:
    held = held_after(memory, chat("hi"), "hello", at=5.0)
    assert found(memory, chat("hi", "hello", "and now?")) == Match(held.tokens, 0, True, 5.0)


@pytest.mark.parametrize("stripped", ["hello", " hello", "hello\n\n", "\n hello "])
def test_stripped_assistant_text_still_matches(memory: NodeMemory, stripped: str) -> None:
    """Clients often strip it: compare without surrounding white space."""
    held_after(memory, chat("hi"), " hello\n")
    assert found(memory, chat("hi", stripped, "and now?"))


def test_dropped_thinking_still_matches(memory: NodeMemory) -> None:
    held_after(memory, chat("hi"), "hello")
    request = chat("hi", "hello", "and now?")
    thoughtful = [*request.messages]
    thoughtful[1] = {**thoughtful[1], "thinking": "hm", "tool_calls": [], "images": None}
    assert found(memory, chat(messages=tuple(thoughtful)))


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": {"system": "Be rude."}},
        {"fields": {"tools": [{"type": "function"}]}},
        {"fields": {"template": "{{ .Prompt }}"}},
        {"fields": {"think": True}},
        {"options": {"num_ctx": 8192}},
        {"system": SYSTEM},
    ],
)
def test_what_the_prompt_is_made_of_tells_conversations_apart(memory: NodeMemory, changes: dict[str, Any]) -> None:
    """Chained hashes over model digest, template-relevant fields (tools, system, `num_ctx`) and the messages."""
    held_after(memory, chat("hi"), "hello")
    assert found(memory, chat("hi", "hello", "and now?", **changes)) is None
    held_after(memory, chat("hi", **changes), "hello")
    assert found(memory, chat("hi", "hello", "and now?", **changes))


@pytest.mark.parametrize(
    "changes", [{"options": {"temperature": 0.9}}, {"fields": {"keep_alive": "1h"}}, {"fields": {"tools": []}}]
)
def test_what_does_not_change_the_prompt_does_not_matter(memory: NodeMemory, changes: dict[str, Any]) -> None:
    held_after(memory, chat("hi"), "hello")
    assert found(memory, chat("hi", "hello", "and now?", **changes))


def test_tools_count_by_what_they_say_not_by_the_order_of_their_names(memory: NodeMemory) -> None:
    held_after(memory, chat("hi", fields={"tools": [{"a": 1, "b": 2}]}), "hello")
    assert found(memory, chat("hi", "hello", "?", fields={"tools": [{"b": 2, "a": 1}]}))


@pytest.mark.parametrize("contents", [("ho", "hello", "?"), ("hi", "hello there", "?"), ("hi", "x", "hello", "y", "?")])
def test_other_conversations_do_not_match(memory: NodeMemory, contents: tuple[str, ...]) -> None:
    held_after(memory, chat("hi"), "hello")
    assert found(memory, chat(*contents)) is None


def test_images_and_tool_calls_are_part_of_a_message(memory: NodeMemory) -> None:
    def asked(image: str) -> tuple[dict[str, Any], ...]:
        return ({"role": "user", "content": "what is it?", "images": [image]},)

    held_after(memory, chat(messages=asked("cat")), "a cat")
    later = ({"role": "assistant", "content": "a cat"}, {"role": "user", "content": "sure?"})
    assert found(memory, chat(messages=asked("cat") + later))
    assert found(memory, chat(messages=asked("dog") + later)) is None


def test_another_copy_of_the_model_holds_nothing(memory: NodeMemory) -> None:
    held_after(memory, chat("hi"), "hello")
    assert found(memory, chat("hi", "hello", "?"), digest="d2") is None


def test_a_shared_system_prompt_alone_is_no_homecoming(memory: NodeMemory) -> None:
    """It is a homecoming when an assistant message matches. A shared system prompt alone is not."""
    held_after(memory, chat("hi", system=SYSTEM), "hello")
    request = chat("something else", system=SYSTEM)
    assert found(memory, request) is None
    assert not conversation(request).later_turn
    assert conversation(chat("hi", "hello", "?", system=SYSTEM)).later_turn


def test_an_earlier_turn_asked_anew_comes_home(memory: NodeMemory) -> None:
    """Regenerating an earlier turn comes home; the prefix counts, not what came after it."""
    held_after(memory, chat("hi"), "hello")
    held = held_after(memory, chat("hi", "hello", "a long question " * 20), "answer")
    match = found(memory, chat("hi", "hello", "another question"))
    assert match is not None
    assert 0 < match.tokens < held.tokens
    assert len(memory) == 1


def test_the_next_turn_replaces_the_older_state(memory: NodeMemory) -> None:
    held_after(memory, chat("hi"), "hello")
    held_after(memory, chat("hi", "hello", "more"), "sure")
    assert len(memory) == 1
    assert found(memory, chat("hi", "hello", "more", "sure", "thanks"))


def test_an_answer_that_its_client_began_is_one_message(memory: NodeMemory) -> None:
    """The text extends the client's own last assistant message; the next turn brings both as one."""
    held_after(memory, chat("hi", "hel"), "lo there")
    assert found(memory, chat("hi", "hello there", "?"))
    assert found(memory, chat("hi", "hel", "?")) is None
    assert not conversation(chat("hi", "hel")).later_turn


def test_without_messages_the_context_stands_for_the_history(memory: NodeMemory) -> None:
    first = chat(operation="generate", messages=(), prompt="hi")
    talk = conversation(first)
    memory.write(Held(continued_keys(talk, "hello", (1, 2, 3)), QWEN, DIGEST, 3, 0.0), talk.prefixes)
    later = chat(operation="generate", messages=(), prompt="more", fields={"context": [1, 2, 3]})
    assert found(memory, later) == Match(3, 0, True, 0.0)
    assert conversation(later).later_turn
    assert not conversation(first).later_turn
    other = chat(operation="generate", messages=(), prompt="more", fields={"context": [1, 2, 4]})
    assert found(memory, other) is None


def test_tokens_are_estimated_by_length() -> None:
    talk = conversation(chat("x" * 400, "y" * 40, "z"))
    assert 100 <= talk.tokens <= 140
    assert 100 <= talk.prefixes[0][1] < talk.tokens


def test_a_long_conversation_keeps_a_bounded_number_of_keys() -> None:
    talk = conversation(chat(*(str(number) for number in range(401))))
    assert len(talk.prefixes) == KEYS_PER_CONVERSATION
    tokens = [tokens for _, tokens in talk.prefixes]
    assert tokens == sorted(tokens, reverse=True), "longest first"
    assert len(continued_keys(talk, "x")) == KEYS_PER_CONVERSATION


def test_a_node_keeps_a_bounded_index(memory: NodeMemory) -> None:
    """The gateway keeps for every node a bounded index of what it holds."""
    for number in range(HELD_PER_NODE + 10):
        held_after(memory, chat(f"question {number}"), "answer")
    assert len(memory) == HELD_PER_NODE
    assert found(memory, chat("question 9", "answer", "?")) is None
    assert found(memory, chat("question 10", "answer", "?"))
    assert sum(len(nodes) for nodes in memory.holders.values()) == HELD_PER_NODE


def test_depth_counts_the_conversations_since(memory: NodeMemory) -> None:
    for number in range(4):
        held_after(memory, chat(f"q{number}"), "a")
    depths = [found(memory, chat(f"q{number}", "a", "?")) for number in range(4)]
    assert [match.depth for match in depths if match] == [3, 2, 1, 0]
    assert [match.certain for match in depths if match] == [False, False, False, True]


def test_how_many_a_node_keeps_is_learned_from_warm_returns(memory: NodeMemory) -> None:
    """How many a node keeps is learned from `prompt_eval_duration`, never assumed."""
    for number in range(5):
        held_after(memory, chat(f"q{number}"), "a")
    assert memory.capacity == 1
    memory.learn(Match(10, 3, False), warm=True)
    assert memory.capacity == 4
    matches = [found(memory, chat(f"q{number}", "a", "?")) for number in range(5)]
    assert [match.certain for match in matches if match] == [False, True, True, True, True]


def test_a_cold_return_teaches_that_nothing_so_deep_is_held(memory: NodeMemory) -> None:
    for number in range(5):
        held_after(memory, chat(f"q{number}"), "a")
    memory.learn(Match(10, 3, False), warm=True)
    memory.learn(Match(10, 2, True), warm=False)
    assert memory.capacity == 2
    assert [bool(found(memory, chat(f"q{number}", "a", "?"))) for number in range(5)] == [0, 0, 0, 1, 1]
    memory.learn(Match(10, 2, False), warm=True)
    assert memory.capacity == 3


def test_a_node_without_a_prompt_cache_is_no_home_to_wait_for(memory: NodeMemory) -> None:
    """Even the newest was read cold: nothing older is a home, and the newest one only if the node is free."""
    held_after(memory, chat("old"), "a")
    held_after(memory, chat("new"), "a")
    memory.learn(Match(10, 0, True), warm=False)
    assert found(memory, chat("old", "a", "?")) is None
    match = found(memory, chat("new", "a", "?"))
    assert match is not None
    assert not match.certain
    memory.learn(match, warm=True)
    again = found(memory, chat("new", "a", "?"))
    assert again is not None
    assert again.certain


def test_the_next_to_be_lost_is_the_oldest_that_is_still_held(memory: NodeMemory) -> None:
    assert memory.next_lost(QWEN) is None
    held_after(memory, chat("q0"), "a")
    newest = held_after(memory, chat("q1"), "a")
    assert memory.next_lost(QWEN) is newest, "it has shown to hold one only"
    assert memory.next_lost(GEMMA) is None
    memory.learn(Match(10, 2, False), warm=True)
    assert memory.next_lost(QWEN) is None, "there is room for a third"
    held_after(memory, chat("q2"), "a")
    assert memory.next_lost(QWEN) is not None
    oldest = memory.next_lost(QWEN)
    assert oldest is not None
    assert oldest.keys[0] == answer_key(conversation(chat("q0")).whole, "a")


def test_an_unloaded_model_holds_nothing(memory: NodeMemory) -> None:
    """Entries go when the model unloads; those of another model stay, and so does what the node can hold."""
    held_after(memory, chat("q0"), "a")
    held_after(memory, chat("q1"), "a", model=GEMMA)
    memory.learn(Match(10, 1, False), warm=True)
    memory.pinned_contexts.update({QWEN: 8192, GEMMA: 8192})
    memory.forget(QWEN)
    assert found(memory, chat("q0", "a", "?")) is None
    assert found(memory, chat("q1", "a", "?"))
    assert memory.pinned_contexts == {GEMMA: 8192}
    assert memory.capacity == 2


def test_a_restarted_node_holds_nothing_and_shows_anew_what_it_can_hold(memory: NodeMemory) -> None:
    """Entries go when the node restarts; it may have come back with another version or more memory."""
    held_after(memory, chat("q0"), "a")
    memory.learn(Match(10, 5, False), warm=True)
    memory.pinned_contexts[QWEN] = 8192
    memory.forget()
    assert (len(memory), memory.by_key, memory.holders, memory.pinned_contexts) == (0, {}, {}, {})
    assert (memory.capacity, memory.cold_depth) == (1, None)


def test_a_conversation_that_went_on_elsewhere_is_forgotten_where_it_was() -> None:
    memories = Memories()
    held_after(memories.of(A), chat("hi"), "hello")
    later = chat("hi", "hello", "more")
    held_after(memories.of(B), later, "sure")
    memories.forget_elsewhere(B, conversation(later).prefixes)
    assert len(memories.of(A)) == 0
    assert found(memories.of(B), chat("hi", "hello", "more", "sure", "?"))


def test_conversations_that_begin_alike_do_not_chase_each_other_away() -> None:
    """Half the world begins with hi and hello: what one does elsewhere says nothing about the other."""
    memories = Memories()
    held_after(memories.of(A), chat("hi"), "hello")
    held_after(memories.of(A), chat("hi", "hello", "first question"), "first answer")
    other = chat("hi", "hello", "second question")
    held_after(memories.of(B), other, "second answer")
    memories.forget_elsewhere(B, conversation(other).prefixes)
    assert found(memories.of(A), chat("hi", "hello", "first question", "first answer", "?"))
    assert found(memories.of(B), chat("hi", "hello", "second question", "second answer", "?"))


def test_a_node_that_left_is_no_holder() -> None:
    memories = Memories()
    held_after(memories.of(A), chat("hi"), "hello")
    memories.remove(A)
    memories.remove(B)
    assert (memories.by_node, memories.holders) == ({}, {})


@pytest.mark.parametrize(
    ("held", "prompt", "seconds", "expected"),
    [
        (100, 120, 0.5, True),  # cold it would take 6 s
        (100, 120, 5.0, False),
        (100, 300, 1.0, None),  # most of the prompt is new: its time says nothing
        (0, 0, 0.0, None),
    ],
)
def test_reading_speed_tells_warm_from_cold(held: int, prompt: int, seconds: float, expected: bool | None) -> None:
    assert was_warm(Match(held, 0, True), prompt, seconds, cold_tokens_per_second=20.0) is expected


def test_single_turns_teach_that_nobody_comes_back() -> None:
    returns = ReturnRate()
    for _ in range(100):
        returns.observe(False)
    assert returns.share == 0.0
    assert loss_seconds(Held((1,), QWEN, DIGEST, 500, 0.0), 20.0, returns, 1.0) == 0.0


def test_the_share_of_later_turns_follows_the_traffic() -> None:
    returns = ReturnRate()
    for number in range(300):
        returns.observe(number % 2 == 0)
    assert 0.4 < returns.share < 0.6
    for _ in range(200):
        returns.observe(False)
    assert returns.share < 0.01


def test_the_loss_is_smaller_the_older_and_the_shorter() -> None:
    """To the one whose loss is smallest (oldest, shortest)."""
    returns = ReturnRate(share=0.5)
    long, short = Held((1,), QWEN, DIGEST, 500, 100.0), Held((1,), QWEN, DIGEST, 50, 100.0)
    losses = [loss_seconds(held, 20.0, returns, now) for held, now in ((long, 100), (long, 1000), (short, 100))]
    assert losses[0] == 0.5 * 500 / 20
    assert losses[1] < losses[0] / 10
    assert losses[2] == losses[0] / 10
    assert loss_seconds(None, 20.0, returns, 0.0) == 0.0


def test_where_everybody_comes_back_soon_a_long_silence_is_the_end() -> None:
    """To the one whose loss is smallest (oldest): what has been silent for longer than all gaps seen makes room."""
    returns = ReturnRate(share=0.8)
    for number in range(200):
        returns.observe_gap(20.0 + number % 40)
    shares = [returns.outlasting(seconds) for seconds in (0.0, 10.0, 30.0, 60.0, 120.0, 100_000.0)]
    assert shares == sorted(shares, reverse=True)
    assert 0.95 < shares[0] <= 1.0
    assert shares[4] < 0.05
    assert returns.probability(120.0) < 0.1 < 0.6 < returns.probability(5.0) <= 1.0


def test_what_is_learned_of_gaps_fades() -> None:
    """Evenings may differ from mornings."""
    returns = ReturnRate(share=0.8)
    for _ in range(300):
        returns.observe_gap(5.0)
    for _ in range(300):
        returns.observe_gap(600.0)
    assert returns.outlasting(120.0) > 0.6


def test_the_usual_gap_between_turns_is_learned() -> None:
    returns = ReturnRate(share=0.5)
    before = returns.probability(300.0)
    for _ in range(50):
        returns.observe_gap(300.0)
    assert returns.probability(300.0) > 2 * before


def test_no_prefixes_match_nothing(memory: NodeMemory) -> None:
    assert memory.find(Conversation((), 1, 1).prefixes, DIGEST) is None
