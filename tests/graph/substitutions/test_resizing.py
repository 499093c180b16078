"""Layers that resize, in another form of the same function."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions import resizing

SIZE = (4, 6, 2)


def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, *SIZE)).astype(np.float32)


def operation(**options: Any) -> Any:
    """Keras' record of a bare `keras.ops.image.resize`."""
    inputs = keras.Input(SIZE)
    graph = Graph(keras.Model(inputs, ops.image.resize(inputs, (7, 3), **options)))
    return graph.nodes[-1].layer


@pytest.mark.parametrize(
    "options",
    [{}, {"interpolation": "nearest"}, {"pad_to_aspect_ratio": True, "fill_value": 2.0}],
    ids=["bilinear", "nearest", "padded"],
)
def test_a_bare_operation_as_a_layer(options: dict[str, Any], rng: np.random.Generator) -> None:
    found = operation(**options)
    assert resizing.is_bare(found)
    layer = resizing.as_layer(found)
    assert layer.name == found.name
    assert not resizing.is_bare(layer)
    x = images(rng)
    np.testing.assert_allclose(layer(x), ops.image.resize(x, (7, 3), **options), atol=1e-6)


def test_nearest_neighbours_are_one_operator(rng: np.random.Generator) -> None:
    layer = layers.UpSampling2D((2, 3), name="up")
    found = resizing.as_one_operator(layer, (None, *SIZE))
    assert isinstance(found, layers.Resizing)
    assert (found.name, found.height, found.width) == ("up", 2 * 4, 3 * 6)
    x = images(rng)
    np.testing.assert_array_equal(found(x), np.repeat(np.repeat(x, 2, 1), 3, 2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.UpSampling2D(2, interpolation="bilinear"), (None, *SIZE)),
        (layers.UpSampling2D(2, data_format="channels_first"), (None, *SIZE)),
        (layers.UpSampling2D(2), (None, None, 6, 2)),
        (layers.UpSampling1D(2), (None, 4, 2)),
        (layers.ReLU(), (None, *SIZE)),
    ],
    ids=["bilinear", "channels first", "open size", "1-D", "another layer"],
)
def test_others_stay(layer: Any, shape: Any) -> None:
    assert resizing.as_one_operator(layer, shape) is None
