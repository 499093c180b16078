"""Moments that batch norms tell, against those of random activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.analysis.batch_norm_moments import channel_moments, weighted_sums
from ocs_tf.graph.reader import Graph
from tests.graph import twins

SHAPE = (8, 8, 6)


def normed(inputs: Any, name: str = "norm") -> Any:
    return layers.BatchNormalization(name=name)(inputs)


def model_of(tail: Callable[[Any], Any]) -> tuple[keras.Model, np.ndarray]:
    """A batch norm and layers behind it, and inputs that the batch norm knows the moments of."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, tail(normed(inputs)))
    x = rng.normal(rng.normal(size=6), rng.lognormal(size=6), (400, *SHAPE)).astype("f4")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            channels = layer.gamma.shape[0]
            layer.gamma.assign(rng.normal(1, 0.3, channels))
            layer.beta.assign(rng.normal(0, 0.5, channels))
    norm = model.get_layer("norm")
    norm.moving_mean.assign(x.mean((0, 1, 2)))
    norm.moving_variance.assign(x.var((0, 1, 2)))
    return model, x


TAILS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "norm": (lambda x: x, True),
    "relu": (layers.ReLU(), True),
    "relu6": (layers.ReLU(6.0), True),
    "leaky": (layers.LeakyReLU(0.1), True),
    "rescaling": (layers.Rescaling(-0.5, 0.25), True),
    "swish": (layers.Activation("swish"), True),
    "concatenation": (lambda x: layers.Concatenate()([x, layers.ReLU()(x)]), True),
    "dropout": (layers.Dropout(0.5), True),
    "dense": (layers.Dense(5), True),
    "dense-relu": (layers.Dense(5, activation="relu", bias_initializer="normal"), True),
    "conv": (layers.Conv2D(5, 1), True),
    "grouped": (layers.Conv2D(6, 1, groups=3), True),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), True),
    "mean": (layers.GlobalAveragePooling2D(), False),  # the variance of a mean is smaller
    "sum": (lambda x: layers.Add()([x, layers.Conv2D(6, 1)(x)]), False),  # of dependent terms
}


@pytest.mark.slow
@pytest.mark.parametrize(("tail", "variances"), TAILS.values(), ids=TAILS)
def test_moments_are_those_of_normal_activations(tail: Any, variances: bool) -> None:
    model, x = model_of(tail)
    found = channel_moments(Graph(model, fold_batch_norm=False))[id(model.outputs[0])]
    y = model.predict(x, verbose=0).astype(np.float64)
    axes = tuple(range(y.ndim - 1))
    spread = y.std(axes).max()
    np.testing.assert_allclose(found[0], y.mean(axes), atol=0.03 * spread)
    if variances:
        np.testing.assert_allclose(found[1], y.var(axes), rtol=0.08)


def test_flatten_repeats_channels() -> None:
    model, _ = model_of(layers.Flatten())
    graph = Graph(model)
    flat = channel_moments(graph)[id(model.outputs[0])]
    channels = channel_moments(graph)[id(model.get_layer("norm").output)]
    np.testing.assert_array_equal(flat[0].reshape(64, 6), np.tile(channels[0], (64, 1)))
    np.testing.assert_array_equal(flat[1].reshape(64, 6), np.tile(channels[1], (64, 1)))


UNKNOWN: dict[str, Callable[[Any], Any]] = {
    "softmax": layers.Activation("softmax"),
    "dense-softmax": layers.Dense(4, activation="softmax"),
    "largest": layers.MaxPooling2D(),
    "product": lambda x: layers.Multiply()([x, x]),
    "places": lambda x: layers.Concatenate(axis=1)([x, x]),
    "first": layers.Permute((3, 1, 2)),
}


@pytest.mark.parametrize("tail", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_left_out(tail: Any) -> None:
    model, _ = model_of(tail)
    assert id(model.outputs[0]) not in channel_moments(Graph(model))


def test_channels_first_and_other_axes_are_not_known() -> None:
    inputs = keras.Input((6, 8, 8))
    y = layers.BatchNormalization(axis=1)(inputs)
    model = keras.Model(inputs, layers.Conv2D(3, 1, data_format="channels_first")(y))
    assert channel_moments(Graph(model)) == {}


def test_without_batch_norms_nothing_is_known() -> None:
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layers.Conv2D(3, 1)(layers.ReLU()(inputs)))
    assert channel_moments(Graph(model)) == {}


def test_a_norm_without_gain_and_shift() -> None:
    inputs = keras.Input(SHAPE)
    norm = layers.BatchNormalization(scale=False, center=False, epsilon=1.0)
    model = keras.Model(inputs, norm(inputs))
    norm.moving_variance.assign(np.full(6, 3.0))
    mean, variance = channel_moments(Graph(model))[id(model.outputs[0])]
    np.testing.assert_array_equal(mean, np.zeros(6))
    np.testing.assert_allclose(variance, np.full(6, 3 / (3 + 1)))


def test_weighted_sums_by_group() -> None:
    rng = np.random.default_rng(0)
    kernel, values = rng.normal(size=(3, 2, 2, 4)), rng.normal(size=4)
    want = [(kernel[..., :, f] * values[2 * (f // 2) : 2 * (f // 2) + 2]).sum() for f in range(4)]
    np.testing.assert_allclose(weighted_sums(kernel, values, 2), want)


@pytest.mark.parametrize("rank", [1, 3])
def test_moments_in_any_number_of_dimensions(rank: int, randomize: Any) -> None:
    """Those of the network of two dimensions, for each layer."""
    model, twin = (twins.network(r, maximum=False) for r in (rank, 2))
    randomize(model)
    pairs = zip(model.get_weights(), twin.weights, strict=True)
    twin.set_weights([values.reshape(weight.shape) for values, weight in pairs])
    np.testing.assert_allclose(_all_moments(model), _all_moments(twin), rtol=1e-5)


def _all_moments(model: keras.Model) -> np.ndarray:
    """Of each tensor behind the first kernel, before which no batch norm stands."""
    graph = Graph(model)
    known = channel_moments(graph)
    return np.concatenate([x for node in graph.nodes[2:] for x in known[id(node.outputs[0])]])


@pytest.mark.parametrize("function", [keras.activations.log_softmax, lambda x: x / x[..., :1]])
def test_functions_across_channels_are_not_followed(function: Any) -> None:
    inputs = keras.Input(SHAPE)
    for last in (layers.Activation(function), layers.Conv2D(6, 1, activation=function)):
        model = keras.Model(inputs, last(normed(inputs)))
        graph = Graph(model)
        assert id(graph.nodes[-1].outputs[0]) not in channel_moments(graph)
