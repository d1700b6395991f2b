from __future__ import annotations

from gpu_node.engine.generation import draw_keys


def test_keys_of_one_seed_are_always_the_same_and_all_different() -> None:
    keys = draw_keys(7, 100)
    assert keys == draw_keys(7, 200)[:100]
    assert len(set(keys)) == 100
    assert not set(keys) & set(draw_keys(8, 100)) and not set(keys) & set(draw_keys(-7, 100))
    assert all(0 <= key < 1 << 64 for key in keys)


def test_seeds_may_have_any_size() -> None:
    assert draw_keys(1 << 80, 1) != draw_keys(0, 1)


def test_without_a_seed_keys_come_by_chance() -> None:
    assert draw_keys(None, 2) != draw_keys(None, 2)
