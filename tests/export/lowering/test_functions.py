"""Softplus in files, for numbers whose exponential is beyond float32."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.export.lowering.functions import with_large_numbers

X = np.array([[-300.0], [-20.5], [-1.0], [0.0], [1.0], [19.5], [20.5], [300.0]], np.float32)


def network() -> keras.Model:
    x = keras.Input((1,))
    given = layers.Dense(2, use_bias=False, kernel_initializer="ones")(x)
    outputs = [
        layers.Activation("softplus")(given),
        layers.Activation("log_sigmoid")(given),
        layers.Dense(2, "softplus", kernel_initializer="ones")(given),
        ops.softplus(given),
        ops.log_sigmoid(given),
    ]
    return keras.Model(x, outputs)


@pytest.mark.parametrize("target", ["float", "packed"])
def test_files_compute_large_numbers(target: Any, tmp_path: pathlib.Path) -> None:
    quantized = ocs_tf.convert(network(), weight_bits=8, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target=target, representative_dataset=X)
    for closeness in ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), X):
        assert closeness.max_difference <= 1e-5 * 600


@pytest.mark.parametrize("function", [layers.Activation("softplus"), ops.log_sigmoid])
def test_so_do_integer_ones(function: Any, tmp_path: pathlib.Path) -> None:
    x = keras.Input((1,))
    model = keras.Model(x, function(layers.Dense(2, kernel_initializer="ones")(x)))
    quantized = ocs_tf.convert(model, representative_dataset=X, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=X)
    (closeness,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), X)
    assert closeness.max_difference <= 1.01 * 300 / 255  # a step


@pytest.mark.parametrize(
    ("name", "sign"), [("softplus", 1), ("log_sigmoid", -1)], ids=["softplus", "log_sigmoid"]
)
def test_the_function_is_the_same(name: str, sign: int) -> None:
    """log(1 + exp(x)) in float64; log_sigmoid(x) is -softplus(-x)."""
    layer = with_large_numbers(layers.Activation(name))
    expected = sign * np.logaddexp(0, sign * X.astype(np.float64))
    np.testing.assert_allclose(np.asarray(layer(X)), expected, rtol=1e-6, atol=1e-7)
