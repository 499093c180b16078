"""Resized images in int8 files, in front of what reads them."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf

SIZE = (8, 8, 3)
WAYS = {
    "nearest": lambda x: layers.UpSampling2D(2)(x),
    "bilinear": lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x),
    "layer": lambda x: layers.Resizing(8, 8, interpolation="nearest")(x),
    "operation": lambda x: ops.image.resize(x, (8, 8)),
    "cropped": lambda x: layers.Resizing(8, 8, crop_to_aspect_ratio=True)(x),
    "padded": lambda x: layers.Resizing(8, 8, pad_to_aspect_ratio=True)(x[:, :3]),
    "filled": lambda x: layers.Resizing(8, 8, pad_to_aspect_ratio=True, fill_value=2.0)(x[:, :3]),
}
EXACT = ("nearest", "layer")


def steps_apart(model: keras.Model, x: np.ndarray, folder: pathlib.Path) -> list[float]:
    """How many steps of each output a file and the quantized Keras model differ by, at most."""
    quantized = ocs_tf.convert(
        model,
        representative_dataset=x,
        verbose=False,
        bias_correction=False,
        rounding="nearest",
    )
    path = folder / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    file = ocs_tf.TFLiteModel(path)
    found = ocs_tf.compare(quantized, file, x)
    steps = [detail["quantization"][0] for detail in file._outputs.values()]
    return [one.max_difference / step for one, step in zip(found, steps, strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_readers_of_every_kind(way: str, tmp_path: pathlib.Path, rng) -> None:
    inputs = keras.Input(SIZE)
    wide = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = WAYS[way](layers.Conv2D(4, 3, strides=2, padding="same")(wide))
    joined = layers.Concatenate()([x, layers.Rescaling(4.0)(wide)])
    outputs = [x, joined, layers.Add()([x, wide]), layers.Conv2D(2, 1)(x)]
    data = rng.normal(size=(8, *SIZE)).astype(np.float32)
    found = steps_apart(keras.Model(inputs, outputs), data, tmp_path)
    # A tie between two codes may go the other way; sums behind it add up several of them.
    limits = [0] * 4 if way in EXACT else [1, 1, 8, 8]
    assert all(apart < limit + 0.01 for apart, limit in zip(found, limits, strict=True)), found


@pytest.mark.parametrize(("rank", "shape"), [(1, (4, 3)), (3, (2, 3, 2, 3))])
def test_repeated_along_other_axes(rank: int, shape, tmp_path: pathlib.Path, rng) -> None:
    inputs = keras.Input(shape)
    x = layers.Dense(4, activation="relu")(inputs)
    x = getattr(layers, f"UpSampling{rank}D")(2)(x)
    data = rng.normal(size=(8, *shape)).astype(np.float32)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert steps_apart(model, data, tmp_path)[0] < 1.01
