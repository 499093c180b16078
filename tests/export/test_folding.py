"""Constants around kernels, which the converter would fold into them: codes stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers, ops

import ocs_tf


@keras.saving.register_keras_serializable("folding")
class Times(layers.Layer):
    def call(self, inputs):
        return inputs * 0.7


@keras.saving.register_keras_serializable("folding")
def half(x):
    return ops.relu(x) * 0.5


@keras.saving.register_keras_serializable("folding")
def third(x):
    return x / 3


BETWEEN: dict[str, Callable[[Any], Any]] = {
    "own layer": Times(),
    "lambda": layers.Lambda(third),
    "own function": layers.Activation(half),
    "hard_sigmoid": layers.Activation("hard_sigmoid"),
    "average": lambda x: layers.Average()([x, layers.Identity()(x)]),
    "batch norm behind a layer that moves": lambda x: layers.BatchNormalization()(
        layers.Identity()(x)
    ),
    "nothing": lambda x: x,
}
SEQUENCE = (4, 3)


def attention(x: Any) -> Any:
    return layers.MultiHeadAttention(1, 3)(x, x)


def attention_with_scores(x: Any) -> Any:
    """Keras scales the query of such a layer, not the scores."""
    found, scores = layers.MultiHeadAttention(1, 3)(x, x, return_attention_scores=True)
    return layers.Concatenate()([found, layers.Reshape((4, 4))(scores)])


KERNELS: dict[str, tuple[tuple[int, ...], Callable[[], Callable[[Any], Any]]]] = {
    "conv": ((5, 5, 3), lambda: layers.Conv2D(3, 2)),
    "dense": ((3,), lambda: layers.Dense(3)),
    "own function inside": ((3,), lambda: layers.Dense(3, activation=third)),
    "lstm": (SEQUENCE, lambda: layers.LSTM(3, return_sequences=True)),
    "attention": (SEQUENCE, lambda: attention),
    "wrapped": (
        SEQUENCE,
        lambda: layers.TimeDistributed(layers.Dense(3, activation="relu", name="query")),
    ),
    "own function wrapped": (
        SEQUENCE,
        lambda: layers.TimeDistributed(layers.Dense(3, activation=third)),
    ),
    "attention with scores": (SEQUENCE, lambda: attention_with_scores),
}


def model_of(kernel: str, between: str, randomize: Any) -> keras.Model:
    shape, make = KERNELS[kernel]
    inputs = keras.Input(shape)
    return randomize(keras.Model(inputs, make()(BETWEEN[between](make()(inputs)))))


@pytest.mark.parametrize(
    ("kernel", "between"),
    [
        *(("conv", between) for between in BETWEEN if between != "nothing"),
        ("dense", "own layer"),
        ("dense", "hard_sigmoid"),
        ("own function inside", "nothing"),
        ("lstm", "own layer"),
        ("attention", "own layer"),
        ("attention with scores", "nothing"),
        ("wrapped", "nothing"),
        ("own function wrapped", "nothing"),
    ],
)
@pytest.mark.parametrize("target", ["int8", "packed"])
def test_kernels_are_found_and_the_file_is_the_model(
    target, kernel, between, randomize, rng, tmp_path
):
    """Every file is run when it is written, and its codes are read back."""
    model = model_of(kernel, between, randomize)
    data = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
    # Without data no operator that rounds stands between the layers of a packed file.
    calibration = data if target == "int8" else None
    quantized = ocs_tf.convert(
        model,
        weight_bits=6,
        rounding="nearest",
        representative_dataset=calibration,
        verbose=False,
    )
    result = ocs_tf.export_tflite(
        quantized, tmp_path / "m.tflite", target=target, representative_dataset=calibration
    )
    floor = {"int8": 25, "packed": 90}[target]
    assert all(close.sqnr_db > floor for close in result.closeness)
