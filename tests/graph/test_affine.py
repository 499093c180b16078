"""Affine layers: gain and shift against what Keras computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.affine import affine, affine_axis

CHANNELS = 4


def layer_scale() -> keras.layers.Layer:
    """A layer of a network of keras.applications that has no public name."""
    model = keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3))
    original = next(layer for layer in model.layers if layer.name.endswith("layer_scale"))
    return type(original)(0.5, CHANNELS)


LAYERS: dict[str, Callable[[], keras.layers.Layer]] = {
    "batch norm": lambda: layers.BatchNormalization(epsilon=0.01),
    "batch norm without scale": lambda: layers.BatchNormalization(scale=False),
    "batch norm without center": lambda: layers.BatchNormalization(center=False),
    "rescaling": lambda: layers.Rescaling(0.5, 0.25),
    "rescaling by channel": lambda: layers.Rescaling([0.5, 1, 2, 3], [1, 2, 3, 4]),
    "normalization": lambda: layers.Normalization(mean=[1, 2, 3, 4], variance=[4, 3, 2, 0]),
    "normalization inverted": lambda: layers.Normalization(
        mean=[1, 2, 3, 4], variance=[4, 3, 2, 1], invert=True
    ),
    "normalization by one number": lambda: layers.Normalization(axis=None, mean=2, variance=9),
    "layer scale": layer_scale,
}


@pytest.mark.parametrize("shape", [(6, 6, CHANNELS), (CHANNELS,)], ids=["pictures", "vectors"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_gain_and_shift(
    make: Callable[[], keras.layers.Layer],
    shape: tuple[int, ...],
    randomize: Any,
    rng: np.random.Generator,
) -> None:
    layer = make()
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    if isinstance(layer, layers.BatchNormalization):
        randomize(model)
    assert affine_axis(layer) == -1
    gain, shift = affine(layer, CHANNELS)
    assert gain.shape == shift.shape == (CHANNELS,)
    want = np.asarray(model(x))
    np.testing.assert_allclose(gain * x + shift, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(CHANNELS),
        layers.LayerNormalization(),
        layers.Normalization(axis=(1, -1), mean=np.ones((6, 4)), variance=np.ones((6, 4))),
    ],
    ids=["dense", "layer norm", "normalization by place"],
)
def test_other_layers_are_none(layer: keras.layers.Layer) -> None:
    layer(keras.Input((6, CHANNELS)))
    assert affine_axis(layer) is None


def test_a_subclass_may_compute_otherwise() -> None:
    class Doubled(layers.Rescaling):
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    assert affine_axis(Doubled(0.5)) is None
