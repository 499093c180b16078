"""Operations that TensorFlow's converter refuses as they are: the file computes what NumPy does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ocs_tf.export.float_file import convert_float
from ocs_tf.export.signature import in_keras_order
from ocs_tf.runtime import tflite

KEYS = [
    np.s_[..., None],
    np.s_[..., None, :],
    np.s_[:, None, :, None],
    np.s_[:, 1:, ..., None, 2],
    np.s_[:, None, ..., ::2],
    np.s_[:, 1, None, ...],
    None,
]


def outputs(model: keras.Model, x: np.ndarray) -> list[np.ndarray]:
    """What the float file of `model` computes."""
    interpreter = tflite.Interpreter(in_keras_order(convert_float(model), model))
    (detail,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(detail["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_slices_of_open_sizes(dtype: str) -> None:
    """All in one file: TensorFlow's converter refuses each of them."""
    inputs = keras.Input((None, None, 4), batch_size=1, dtype=dtype)
    sliced = [keras.layers.Lambda(lambda x, key=key: x[key])(inputs) for key in KEYS]
    x = np.random.default_rng(0).integers(0, 2, (1, 3, 5, 4)).astype(dtype)
    for key, found in zip(KEYS, outputs(keras.Model(inputs, sliced), x), strict=True):
        np.testing.assert_array_equal(found, x[key])


@pytest.mark.parametrize("equation", ["abc,de->abcde", "abc,d->adbc", "abc,bc->acb", "abc,cb->abc"])
def test_products_that_add_up_nothing(equation: str) -> None:
    sizes = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 2}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    letters = equation.partition(",")[2].partition("->")[0]
    factors = rng.normal(size=[sizes[letter] for letter in letters]).astype("float32")
    inputs = keras.Input((3, 4), batch_size=2)
    made = keras.layers.Lambda(lambda t: keras.ops.einsum(equation, t, factors))(inputs)
    (found,) = outputs(keras.Model(inputs, made), x)
    np.testing.assert_allclose(found, np.einsum(equation, x, factors), rtol=1e-6)


@pytest.mark.parametrize("axis", [None, 1, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_places_of_extremes(axis: int | None, keepdims: bool) -> None:
    inputs = keras.Input((5, 4), batch_size=1)
    functions = keras.ops.argmax, keras.ops.argmin
    made = [function(inputs, axis=axis, keepdims=keepdims) for function in functions]
    x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    found = outputs(keras.Model(inputs, made), x)
    for function, got in zip((np.argmax, np.argmin), found, strict=True):
        np.testing.assert_array_equal(got, function(x, axis=axis, keepdims=keepdims))


def test_tensorflow_and_keras_compute_as_before() -> None:
    before: Any = tf.Tensor.__getitem__
    add = keras.src.backend.numpy.add
    inputs = keras.Input((3,), batch_size=1)
    convert_float(keras.Model(inputs, inputs * 2))
    assert tf.Tensor.__getitem__ is before
    assert keras.src.backend.numpy.add is add
