"""Kernels that no output depends on."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.runtime import runner, tflite


def of_one_step(layer: Callable[[], keras.Layer]) -> keras.Model:
    x = keras.Input((1, 4))
    return keras.Model(x, layers.Dense(3)(layer()(x)))


def scores_only() -> keras.Model:
    x = keras.Input((5, 4))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    return keras.Model(x, attention(x, x, return_attention_scores=True)[1])


MODELS = {
    "lstm": (lambda: of_one_step(lambda: layers.LSTM(4, name="lstm")), ["lstm/recurrent_kernel"]),
    "gru": (
        lambda: of_one_step(lambda: layers.GRU(4, reset_after=False, name="gru")),
        ["gru/recurrent_kernel"],
    ),
    "bidirectional": (
        lambda: of_one_step(lambda: layers.Bidirectional(layers.SimpleRNN(4), name="both")),
        ["both/forward/recurrent_kernel", "both/backward/recurrent_kernel"],
    ),
    "scores": (scores_only, ["attention/value", "attention/attention_output"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_are_left_out_and_noted(name: str, tmp_path: pathlib.Path) -> None:
    build, unused = MODELS[name]
    model = build()
    data = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    result = ocs_tf.export_tflite(quantized, path, target="int8", representative_dataset=data)
    for kernel in unused:
        assert f"The kernel {kernel!r} is not in the file: no output depends on it." in result.notes
    file = tflite.Interpreter(path)
    given, made = file.get_input_details()[0], file.get_output_details()[0]
    found = []
    for sample in data:
        file.set_tensor(given["index"], runner.to_codes(sample[None], given))
        file.invoke()
        found.append(runner.to_floats(file.get_tensor(made["index"]), made))
    wanted = np.asarray(model(data))
    noise = np.square(np.concatenate(found) - wanted).mean()
    assert noise < np.square(wanted).mean() / 10**1.5  # 15 dB


def test_what_the_converter_changed_is_not_taken_for_unused(tmp_path: pathlib.Path) -> None:
    """It makes a product of a dense layer that reads one channel."""
    x = keras.Input((3, 3, 1))
    model = keras.Model(x, layers.Dense(4, name="dense")(x))
    quantized = ocs_tf.convert(model, verbose=False, activation_bits=None)
    with pytest.raises(
        ValueError, match=r"kernel of layer 'dense' .* is not in the converted file"
    ):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="packed")
