"""Who holds which key: the index over all nodes mirrors their memories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.affinity import (
    HELD_PER_NODE,
    KEYS_IN_ALL,
    KEYS_PER_CONVERSATION,
    Held,
    Match,
    Memories,
    conversation,
)
from server.nodes import ModelKey, NodeId
from tests.server.scripted_nodes import chat
from tests.server.test_affinity import found, held_after

A, B = NodeId("a"), NodeId("b")
QWEN, GEMMA = ModelKey("qwen"), ModelKey("gemma")
DIGEST = "d1"
SYSTEM = "You are a helpful assistant."


KEYS = st.integers(0, 9)
NODES = st.sampled_from([A, B, NodeId("c")])


class MemoriesStayConsistent(RuleBasedStateMachine):
    """`holders` is the exact reverse of all `by_key`s, whatever is written, replaced and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.memories = Memories()

    @rule(
        node_id=NODES,
        keys=st.lists(KEYS, min_size=1, max_size=4, unique=True),
        continued=st.lists(KEYS, max_size=3),
        model=st.sampled_from([QWEN, GEMMA]),
    )
    def write(self, node_id: NodeId, keys: list[int], continued: list[int], model: ModelKey) -> None:
        memory = self.memories.of(node_id)
        memory.write(Held(tuple(keys), model, DIGEST, 10, 0.0), [(key, 5) for key in continued])
        match = memory.find([(keys[0], 10)], DIGEST)
        assert match is not None
        assert match.depth == 0

    @rule(node_id=NODES, keys=st.lists(KEYS, max_size=3))
    def forget_elsewhere(self, node_id: NodeId, keys: list[int]) -> None:
        self.memories.forget_elsewhere(node_id, [(key, 5) for key in keys])

    @rule(node_id=NODES, model=st.sampled_from([QWEN, GEMMA, None]))
    def forget(self, node_id: NodeId, model: ModelKey | None) -> None:
        memory = self.memories.of(node_id)
        memory.forget(model)
        assert not any(model is None or held.model == model for held in memory.held.values())

    @rule(node_id=NODES)
    def remove(self, node_id: NodeId) -> None:
        self.memories.remove(node_id)

    @rule(node_id=NODES, depth=st.integers(0, 5), warm=st.booleans())
    def learn(self, node_id: NodeId, depth: int, warm: bool) -> None:
        memory = self.memories.of(node_id)
        memory.learn(Match(10, depth, False), warm)
        assert memory.capacity >= 1
        if memory.cold_depth:
            assert memory.warm_depth < memory.cold_depth

    @invariant()
    def holders_mirror_the_memories(self) -> None:
        mirrored: dict[int, set[NodeId]] = {}
        for node_id, memory in self.memories.by_node.items():
            for key in memory.by_key:
                mirrored.setdefault(key, set()).add(node_id)
        assert self.memories.holders == mirrored

    @invariant()
    def every_key_leads_to_something_held(self) -> None:
        for memory in self.memories.by_node.values():
            for key, entry in memory.by_key.items():
                assert key in entry.keys
                assert memory.held.get(entry.keys[0]) is entry
            assert all(newest == entry.keys[0] for newest, entry in memory.held.items())


def long_conversation(number: int) -> Held:
    keys = range(number * KEYS_PER_CONVERSATION, (number + 1) * KEYS_PER_CONVERSATION)
    return Held(tuple(keys), QWEN, DIGEST, 10, 0.0)


def test_the_memories_of_a_large_fleet_are_bounded_together() -> None:
    """What one phone may hold, times a thousand phones, would be more than a gigabyte."""
    memories = Memories()
    numbers = iter(range(10**9))
    for node in range(1000):
        memories.of(NodeId(f"n{node}"))
    few = [memories.of(NodeId(f"n{node}")) for node in range(20)]
    for memory in few:
        for _ in range(HELD_PER_NODE):
            memory.write(long_conversation(next(numbers)))
    share = KEYS_IN_ALL // 1000
    assert all(share - KEYS_PER_CONVERSATION < len(memory.by_key) <= share for memory in few)
    assert len(memories.holders) == sum(len(memory.by_key) for memory in few)


def test_a_node_alone_holds_as_much_as_it_may() -> None:
    memory = Memories().of(A)
    for number in range(HELD_PER_NODE + 1):
        memory.write(long_conversation(number))
    assert len(memory) == HELD_PER_NODE


def test_the_newest_conversation_is_kept_however_many_nodes_there_are() -> None:
    memories = Memories()
    for number in range(2 * KEYS_IN_ALL // KEYS_PER_CONVERSATION):
        memories.of(NodeId(f"n{number}"))
    memory = memories.of(NodeId("n0"))
    for number in range(3):
        memory.write(long_conversation(number))
    assert list(memory.held) == [2 * KEYS_PER_CONVERSATION]


def test_of_two_equal_conversations_only_the_one_that_goes_on_is_forgotten() -> None:
    """Two clients have said the same so far, at two nodes: one goes on, and the other still finds its own."""
    memories = Memories()
    for node_id in (A, B):
        held_after(memories.of(node_id), chat("hi"), "hello")
    first = chat("hi", "hello", "one")
    held_after(memories.of(A), first, "sure")
    memories.forget_elsewhere(A, conversation(first).prefixes)
    assert found(memories.of(B), chat("hi", "hello", "two"))
    elsewhere = NodeId("c")
    second = chat("hi", "hello", "two")
    held_after(memories.of(elsewhere), second, "well")
    memories.forget_elsewhere(elsewhere, conversation(second).prefixes)
    assert len(memories.of(B)) == 0
    assert found(memories.of(A), chat("hi", "hello", "one", "sure", "?"))


def test_of_several_equal_conversations_elsewhere_the_oldest_is_forgotten() -> None:
    memories = Memories()
    for at, name in enumerate("cab"):
        held_after(memories.of(NodeId(name)), chat("hi"), "hello", at=float(at))
    moved = chat("hi", "hello", "one")
    held_after(memories.of(NodeId("d")), moved, "sure")
    memories.forget_elsewhere(NodeId("d"), conversation(moved).prefixes)
    assert [len(memories.of(NodeId(name))) for name in "abcd"] == [1, 1, 0, 1]


TestMemoriesStayConsistent = MemoriesStayConsistent.TestCase
TestMemoriesStayConsistent.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
