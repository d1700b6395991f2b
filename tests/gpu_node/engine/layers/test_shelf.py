import torch

from gpu_node.engine.layers.shelf import ALIGNMENT, Place, shelved

CPU = torch.device("cpu")


def test_views_are_aligned_and_do_not_overlap():
    places = {"a": Place((3, 5), torch.bfloat16), "b": Place((7,), torch.float32), "c": Place((2, 2), torch.float16)}
    views = shelved(places, CPU)
    for at, view in enumerate(views.values()):
        assert view.data_ptr() % ALIGNMENT == 0
        view.fill_(at + 1)
    assert [set(view.flatten().tolist()) for view in views.values()] == [{1.0}, {2.0}, {3.0}]
    assert {name: (tuple(view.shape), view.dtype) for name, view in views.items()} == {
        name: (place.shape, place.dtype) for name, place in places.items()
    }


def test_all_lie_in_one_buffer():
    views = shelved({name: Place((100,), torch.float32) for name in "abc"}, CPU)
    assert len({view.untyped_storage().data_ptr() for view in views.values()}) == 1


def test_an_empty_shelf_is_no_mistake():
    assert shelved({}, CPU) == {}
