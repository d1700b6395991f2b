"""Who holds which key: the index over all nodes mirrors their memories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.affinity import (
    Held,
    Match,
    Memories,
)
from server.nodes import ModelKey, NodeId

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


TestMemoriesStayConsistent = MemoriesStayConsistent.TestCase
TestMemoriesStayConsistent.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
