"""Who waits for a prefix that is being computed gets free exactly once."""

from __future__ import annotations

from gpu_node.engine.block_chain import BlockChain, BlockKey
from gpu_node.engine.planned import Submission
from gpu_node.engine.promises import Promises
from gpu_node.engine.sequence_state import SequenceState


def state(identity: int, tokens: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7), priority: int = 0) -> SequenceState:
    submission = Submission(tokens, 10, priority=priority)
    return SequenceState(identity, submission, list(tokens), 10, BlockChain("", 2), True)


def keys(one: SequenceState) -> list[BlockKey]:
    one.chain.extend(one.tokens, len(one.tokens) // 2)
    return one.chain.keys


def test_the_run_at_the_front_counts() -> None:
    promises, owner, other = Promises(), state(1), state(2, (1, 2, 3, 4, 9, 9, 9))
    promises.make(owner, keys(owner))
    assert promises.last_promised(other, keys(other)) is not None
    assert promises.last_promised(other, keys(other)).digest == keys(owner)[1].digest
    assert promises.last_promised(other, keys(other)[2:]) is None
    assert promises.last_promised(other, []) is None


def test_kept_promises_free_who_waited_for_them() -> None:
    promises, owner, early, late = Promises(), state(1), state(2), state(3)
    promises.make(owner, keys(owner))
    promises.hold(early, keys(owner)[0])
    promises.hold(late, keys(owner)[2])
    assert promises.holding == 2 and promises.everybody() == [early, late]
    assert promises.settle(owner, keys(owner)[:1]) == [early]
    assert promises.settle(owner, keys(owner)[:1]) == []
    assert promises.holding == 1 and late.awaits is not None and early.awaits is None
    assert promises.settle(owner, keys(owner)) == [late] and promises.holding == 0


def test_only_the_owner_settles() -> None:
    promises, owner, second = Promises(), state(1), state(2)
    promises.make(owner, keys(owner))
    promises.make(second, keys(second))
    promises.hold(state(3), keys(owner)[0])
    assert promises.settle(second, keys(second)) == [] and promises.holding == 1


def test_who_gives_up_is_not_freed() -> None:
    promises, owner, held = Promises(), state(1), state(2)
    promises.make(owner, keys(owner))
    promises.hold(held, keys(owner)[0])
    assert promises.leave(held) and not promises.leave(held)
    assert promises.settle(owner, keys(owner)) == [] and promises.holding == 0


def test_nobody_waits_for_who_is_less_urgent() -> None:
    promises, owner = Promises(), state(1, priority=0)
    promises.make(owner, keys(owner))
    assert promises.last_promised(state(2, priority=1), keys(owner)) is None
    assert promises.last_promised(state(2, priority=-1), keys(owner)) is not None
