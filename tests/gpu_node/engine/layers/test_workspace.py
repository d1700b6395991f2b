import torch

from gpu_node.engine.batch import batch_of
from gpu_node.engine.layers.recipe import Recipe, recipe_of
from gpu_node.engine.layers.rotary import Angles
from gpu_node.engine.layers.workspace import Workspace
from gpu_node.engine.step import Row
from tests.fakes.tiny_families import tiny_family

BLOCK = 4


def workspace(tokens=8, longest=3):
    recipe = recipe_of(tiny_family("llama").config)
    assert isinstance(recipe, Recipe)
    return Workspace(recipe, 48, {"": 8}, tokens, longest)


def mixed_batch():
    """Three tokens of a prompt and one of an answer."""
    rows = [Row(0, [7, 8, 9], 0, (5,), "logits", 1), Row(1, [3], 9, (4, 2, 6), "logits", 1)]
    return batch_of(rows, BLOCK)


def angles():
    return Angles(torch.arange(80.0).view(10, 8), -torch.arange(80.0).view(10, 8))


def test_a_batch_lies_at_the_same_place_every_time():
    room, batch = workspace(), mixed_batch()
    before = room.hidden.data_ptr(), room.tables.data_ptr(), room.cosines[""].data_ptr()
    room.fill(batch, torch.full((4, 32), 2.0), {"": angles()})
    assert (room.hidden.data_ptr(), room.tables.data_ptr(), room.cosines[""].data_ptr()) == before
    assert room.positions[:4].tolist() == [0, 1, 2, 9]
    assert room.rows[:4].tolist() == [0, 0, 0, 1]
    assert room.blocks[:4].tolist() == [5, 5, 5, 6]
    assert room.places[:4].tolist() == [0, 1, 2, 1]
    assert room.tables[1].tolist() == [4, 2, 6]
    assert torch.equal(room.cosines[""][:4], angles().cosine[[0, 1, 2, 9]])
    assert torch.equal(room.sines[""][:4], angles().sine[[0, 1, 2, 9]])
    assert bool((room.hidden[:4] == 2.0).all()) and not room.hidden[4:].any()


def test_what_is_left_of_an_earlier_batch_is_not_looked_at():
    room = workspace()
    room.fill(mixed_batch(), torch.zeros(4, 32), {"": angles()})
    one = batch_of([Row(0, [1], 2, (7,), "logits", 1)], BLOCK)
    room.fill(one, torch.ones(1, 32), {"": angles()})
    assert (room.rows[0], room.positions[0], room.tables[0, 0]) == (0, 2, 7)


def test_only_what_has_room_fits():
    batch = mixed_batch()
    assert workspace().fits(batch)
    assert not workspace(tokens=3).fits(batch)
    assert not workspace(longest=2).fits(batch)


def test_its_bytes_are_those_of_its_tensors():
    assert workspace(tokens=8).bytes == 2 * workspace(tokens=4).bytes
