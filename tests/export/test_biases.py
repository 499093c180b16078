"""Biases that are large beside the weights of their channel, in files of integers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.runtime.model import TFLiteModel

# A layer, and the weights of its second output channel.
LAYERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "dense": (lambda: layers.Dense(3, name="small"), np.s_[..., 1]),
    "conv": (lambda: layers.Conv2D(3, 2, name="small"), np.s_[..., 1]),
    "depthwise": (lambda: layers.DepthwiseConv2D(2, name="small"), np.s_[:, :, 1]),
    "transposed": (lambda: layers.Conv2DTranspose(3, 2, name="small"), np.s_[:, :, 1]),
}


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("weight", [0.0, 1e-8])
@pytest.mark.parametrize("kind", LAYERS)
def test_small_channels_keep_their_biases(
    kind: str,
    weight: float,
    granularity: str,
    tmp_path: pathlib.Path,
    rng: np.random.Generator,
) -> None:
    x = keras.Input((4, 4, 3))
    layer, channel = LAYERS[kind]
    model = keras.Model(x, layer()(x))
    kernel, bias = model.get_weights()
    kernel[channel if granularity == "channel" else ...] *= weight
    bias[1] = 50
    model.set_weights([kernel, bias])
    data = rng.normal(size=(20, 4, 4, 3)).astype("float32")
    quantized = ocs_tf.convert(
        model, granularity=granularity, representative_dataset=data, verbose=False
    )
    ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="int8")
    (close,) = compare(model, TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.max_difference <= 2 * quantized.get_layer("small").output_grid.scale
