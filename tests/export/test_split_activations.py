"""Split activations in files: copies add up to the numbers of the Keras model."""

from __future__ import annotations

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from tests.export.keras_and_file import run, worst_step
from tests.export.networks import (
    linear,
    randomize,
    samples,
)


def splittable() -> keras.Model:
    """Two tensors that can be split, one of them behind a pooling."""
    inputs = keras.Input((8, 8, 6), name="x")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="a")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Conv2D(8, 3, name="c")(layers.MaxPooling2D(2)(x))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x))))


SPLIT_OPTIONS: dict[str, dict] = {
    "error": {"activation_split": "error"},
    "maximum": {"activation_split": "maximum"},
    "many": {"activation_split": "maximum", "activation_expand_ratio": 1.0},
    "tensor": {"granularity": "tensor", "activation_split": "maximum"},
    # Copies of weights of 8 bits stay channels of their own, in front of the copies of activations.
    "weights, too": {"expand_ratio": 0.3, "granularity": "tensor", "activation_split": "maximum"},
    "w4": {"weight_bits": 4, "expand_ratio": 0.2, "activation_split": "maximum"},
}


@pytest.mark.parametrize("options", SPLIT_OPTIONS.values(), ids=SPLIT_OPTIONS)
@pytest.mark.parametrize("make", [splittable, linear], ids=["relu", "linear"])
def test_split_activations_in_integers(make, options, tmp_path):
    """The interpreter adds up copies; the Keras model has one number with more codes."""
    model = make()
    data = samples(model, 48)
    options = {"activation_expand_ratio": 0.3, "rounding": "nearest", **options}
    quantized = ocs_tf.convert(
        model, representative_dataset=data, bias_correction=False, verbose=False, **options
    )
    grids = {v.name: v.output_grid for v in quantized.layers if hasattr(v, "output_grid")}
    copies = len(grids["a"].copies)
    assert copies
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    (got,) = run(path, data)
    step = grids["head"].scale
    worst, differ = worst_step(np.asarray(quantized(data["x"])), got, step)
    # Copies are rounded one by one, with a bias that is a whole number: near ties, sums of theirs
    # can differ from the Keras model's by a step of the tensor.
    assert worst <= 3.01
    assert differ <= 0.25
    shapes = [d["shape"].tolist() for d in litert.Interpreter(str(path)).get_tensor_details()]
    units = quantized.get_layer("a").codes.shape[-1]
    # Copies of what reads them may add more.
    assert any(len(s) == 4 and s[-1] >= units + copies for s in shapes)


def test_split_codes_are_in_the_file(tmp_path):
    """The producer's codes twice at half of the step; the reader's rows twice as they are."""
    model = linear()
    data = samples(model, 48)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        activation_expand_ratio=0.1,
        activation_split="maximum",
        verbose=False,
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    first, second = (quantized.get_layer(name).quantized_kernel() for name in "ab")
    channels = [*range(16), *quantized.get_layer("a").output_grid.copies]
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    kernels = {
        tuple(d["shape"]): d for d in interpreter.get_tensor_details() if d["dtype"] == np.int8
    }
    made = kernels[(len(channels), 1, 1, 5)]
    expected = np.moveaxis(first.codes[..., channels], -1, 0)
    np.testing.assert_array_equal(interpreter.get_tensor(made["index"]), expected)
    k = np.bincount(channels)[channels]
    scales = (first.scale[channels] / k).astype(np.float32)
    np.testing.assert_array_equal(made["quantization_parameters"]["scales"], scales)
    read = kernels[(10, 3, 3, len(channels))]
    expected = np.moveaxis(second.codes[:, :, channels], -1, 0)
    np.testing.assert_array_equal(interpreter.get_tensor(read["index"]), expected)
    np.testing.assert_array_equal(read["quantization_parameters"]["scales"], second.scale)


@pytest.mark.parametrize("target", ["float", "int4"])
def test_files_with_float_activations_do_not_split_them(target, tmp_path):
    model = splittable()
    data = samples(model)
    options = {"representative_dataset": data, "weight_bits": 4, "rounding": "nearest"}
    paths = []
    for ratio in (0.0, 0.5):
        quantized = ocs_tf.convert(
            model, bias_correction=False, activation_expand_ratio=ratio, verbose=False, **options
        )
        paths.append(tmp_path / f"{ratio}.tflite")
        activations = {"activations": "float"} if target == "int4" else {}
        ocs_tf.export_tflite(quantized, paths[-1], target=target, **activations)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    # Biases are rounded to the steps of the grids, which differ.
    np.testing.assert_allclose(run(paths[0], data)[0], run(paths[1], data)[0], atol=0.02)
