"""Arrays in and out: as they lie, or refused."""

import array
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from potluck import Misuse, TensorData
from potluck.relay_arrays import dtype_named, tensor_of


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
              "float64", "complex64", "complex128"]
)  # fmt: skip
def test_numpy_arrays_travel_in_every_type(dtype):
    source = numpy.arange(6).reshape(2, 3).astype(dtype)
    taken = tensor_of(source)
    assert (taken.dtype, taken.shape, taken.nbytes) == (dtype, (2, 3), source.nbytes)
    back = taken.numpy()
    assert back.dtype == source.dtype and (back == source).all()
    assert (numpy.asarray(taken) == source).all()


def test_nothing_is_copied_where_it_need_not_be():
    source = numpy.arange(4, dtype="float32")
    taken = tensor_of(source)
    source[0] = 9
    assert taken.tolist() == [9, 1, 2, 3]
    room = bytearray(16)
    view = TensorData(memoryview(room), "float32", (4,)).numpy()
    view[1] = 1
    assert any(room)


def test_what_is_not_contiguous_is_put_in_order():
    source = numpy.arange(12, dtype="int32").reshape(3, 4)
    assert tensor_of(source.T).tolist() == source.T.tolist()
    assert tensor_of(source[:, ::2]).tolist() == source[:, ::2].tolist()


@pytest.mark.parametrize(
    ("source", "dtype", "shape"),
    [
        (3, "int64", ()), (1.5, "float32", ()), ([1, 2], "int64", (2,)), ([[1, 2], [3, 4.5]], "float32", (2, 2)),
        ([], "float32", (0,)), ([[], []], "float32", (2, 0)), (b"abc", "uint8", (3,)),
        (array.array("d", [1]), "float64", (1,)),
        (memoryview(b""), "uint8", (0,)),
    ],
)  # fmt: skip
def test_what_has_no_type_of_its_own_gets_the_usual_one(source, dtype, shape):
    taken = tensor_of(source)
    assert (taken.dtype, taken.shape) == (dtype, shape)
    if isinstance(source, list | int | float):
        assert taken.tolist() == source


def test_bytes_are_what_they_are_said_to_be():
    taken = tensor_of(b"\x80\x3f\x00\x40", "bfloat16", (2,))
    assert (taken.dtype, taken.shape) == ("bfloat16", (2,))
    with pytest.raises(Misuse, match="numpy has no bfloat16"):
        taken.numpy()
    with pytest.raises(Misuse, match="no numbers"):
        taken.tolist()
    assert tensor_of([True, False]).tolist() == [1, 0]
    assert tensor_of([1, 0], "bool").tolist() == [True, False]
    assert tensor_of(tensor_of([1, 2]), shape=(2, 1)).shape == (2, 1)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (object(), {}), ("text", {}), ([1, "x"], {}), ([[1], [1, 2]], {}), ([1, [2]], {}), ([300], {"dtype": "uint8"}),
        ([1], {"dtype": "float13"}), ([1], {"dtype": "bfloat16"}), (b"123", {"dtype": "int16", "shape": (1,)}),
        (b"12", {"dtype": "int16"}), (array.array("f", [1]), {"dtype": "int32"}), ([1, 2], {"shape": (3,)}),
        ([1], {"shape": (1,) * 7}), (b"", {"shape": (-1, 0)}), (numpy.zeros(2, ">f4"), {}),
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_refused(source, options):
    with pytest.raises(Misuse):
        tensor_of(source, **options)


def test_names_may_be_torchs():
    assert dtype_named("torch.float32") is dtype_named("float32")


def test_numpy_is_not_imported_for_it():
    code = (
        "import sys, array; from potluck.relay_arrays import tensor_of; tensor_of(array.array('f', [1])).tolist();"
        "assert 'numpy' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
