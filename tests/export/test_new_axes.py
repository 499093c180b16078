"""Slices that add axes, where several sizes are open: the file computes what NumPy does."""

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


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_slices_of_open_sizes(dtype: str) -> None:
    """All in one file: TensorFlow's converter refuses each of them."""
    inputs = keras.Input((None, None, 4), batch_size=1, dtype=dtype)
    sliced = [keras.layers.Lambda(lambda x, key=key: x[key])(inputs) for key in KEYS]
    model = keras.Model(inputs, sliced)
    interpreter = tflite.Interpreter(in_keras_order(convert_float(model), model))
    x = np.random.default_rng(0).integers(0, 2, (1, 3, 5, 4)).astype(dtype)
    (detail,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(detail["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    details = interpreter.get_output_details()
    for key, detail in zip(KEYS, details, strict=True):
        np.testing.assert_array_equal(interpreter.get_tensor(detail["index"]), x[key])


def test_tensorflow_slices_as_before() -> None:
    before: Any = tf.Tensor.__getitem__
    inputs = keras.Input((3,), batch_size=1)
    convert_float(keras.Model(inputs, inputs * 2))
    assert tf.Tensor.__getitem__ is before
