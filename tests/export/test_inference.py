"""Layers with dropout inside, and layers of other floats, in files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.export.inference import in_float32, without_dropout
from ocs_tf.runtime import tflite

WITH_DROPOUT: dict[str, Callable[[float], Callable]] = {
    "LSTM": lambda rate: layers.LSTM(3, dropout=rate, recurrent_dropout=rate),
    "Bidirectional": lambda rate: layers.Bidirectional(layers.GRU(3, dropout=rate)),
    "RNN": lambda rate: layers.RNN(
        [layers.SimpleRNNCell(3, dropout=rate), layers.LSTMCell(3, recurrent_dropout=rate)]
    ),
    "MultiHeadAttention": lambda rate: (
        lambda x: layers.MultiHeadAttention(2, 3, dropout=rate)(x, x)
    ),
    "GroupQueryAttention": lambda rate: (
        lambda x: layers.GroupQueryAttention(3, 2, 1, dropout=rate)(x, x)
    ),
    "TimeDistributed": lambda rate: (
        lambda x: layers.TimeDistributed(layers.LSTM(3, dropout=rate))(layers.Reshape((2, 2, 6))(x))
    ),
    "Attention": lambda rate: lambda x: layers.Attention(dropout=rate)([x, x]),
    "ConvLSTM1D": lambda rate: (
        lambda x: layers.ConvLSTM1D(2, 2, recurrent_dropout=rate)(layers.Reshape((2, 2, 6))(x))
    ),
}


def run(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
    interpreter = tflite.Interpreter(path)
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(given["index"], sample[None].astype(given["dtype"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(made["index"]).copy())
    return np.concatenate(outputs)


@pytest.mark.parametrize("case", WITH_DROPOUT)
def test_a_file_has_no_dropout(case: str, tmp_path: pathlib.Path, rng) -> None:
    inputs = keras.Input((4, 6))
    outputs = layers.Dense(2)(WITH_DROPOUT[case](0.4)(inputs))
    quantized = ocs_tf.convert(keras.Model(inputs, outputs), weight_bits=5, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="packed")
    x = rng.normal(size=(4, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(run(path, x), quantized(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [None, 2])
def test_queries_that_may_read_nothing(
    heads: int | None, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """Padding: Keras makes 0 of it where attention has dropout. A mask may be for each head."""
    inputs = keras.Input((4, 6))
    mask = ops.abs(inputs[:, :, :1]) > 0.5  # [B, T, 1]: of all that a query reads
    mask = mask if heads is None else mask[:, None]
    mask = mask & ops.ones((1, heads, 4, 4) if heads else (1, 4, 4), "bool")
    layer = layers.MultiHeadAttention(2, 3, dropout=0.4)
    outputs = layers.Dense(2)(layer(inputs, inputs, attention_mask=mask))
    model = keras.Model(inputs, outputs)
    quantized = ocs_tf.convert(model, weight_bits=5, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="float")
    x = rng.normal(size=(4, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(run(path, x), quantized(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["LSTM", "MultiHeadAttention"])
def test_an_int8_file_is_that_of_a_model_without_dropout(
    case: str, tmp_path: pathlib.Path, rng
) -> None:
    x = rng.normal(size=(8, 4, 6)).astype(np.float32)
    results: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for rate in (0.0, 0.4):
        inputs = keras.Input((4, 6))
        model = keras.Model(inputs, layers.Dense(2)(WITH_DROPOUT[case](rate)(inputs)))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        options = {"representative_dataset": x, "verbose": False}
        quantized = ocs_tf.convert(model, bias_correction=False, rounding="nearest", **options)
        path = tmp_path / f"{rate}.tflite"
        ocs_tf.export_tflite(quantized, path, representative_dataset=x, io_dtype="float32")
        results.append(run(path, x))
    np.testing.assert_allclose(*results, atol=2 / 255 * np.ptp(results[0]))


def test_layers_of_users_keep_their_attributes() -> None:
    class Own(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = 0.5
            self.inside = layers.LSTMCell(2, dropout=0.5)

    own = without_dropout(Own())
    assert own.dropout == 0.5
    assert own.inside.dropout == 0


def model_of_floats(dtype: str) -> keras.Model:
    inputs = keras.Input((6,), dtype=dtype)
    x = layers.Dense(5, activation="relu", dtype=dtype)(inputs)
    x = ops.add(x, np.linspace(0, 1, 5))  # in float64
    x = layers.BatchNormalization(dtype=dtype)(ops.cast(x, dtype))
    return keras.Model(inputs, layers.Dense(3, dtype=dtype)(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_float32_in_a_file(dtype: str, tmp_path: pathlib.Path, rng) -> None:
    quantized = ocs_tf.convert(model_of_floats(dtype), weight_bits=6, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="float")
    x = rng.normal(size=(4, 6)).astype(np.float32)
    want = np.asarray(ops.cast(quantized(ops.cast(x, dtype)), "float32"))
    got = run(path, x)
    assert got.dtype == np.float32
    # 2^-9, of bfloat16, a few times over.
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_integers_and_float32_stay() -> None:
    layer = layers.Embedding(3, 2, dtype="int32")
    cast: Any = ops.cast(keras.Input((3,)), "int32")._keras_history.operation
    assert in_float32(layer).compute_dtype == "int32"
    assert in_float32(cast).dtype == "int32"
