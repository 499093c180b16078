"""What first layers say of inputs, against the inputs that their batch norms were trained on."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.reader import Graph
from ocs_tf.numerics.random_fields import noise_fields
from ocs_tf.synthesis.input_moments import input_moments, solve_moments


def trained(model: keras.Model, norm: str, x: np.ndarray) -> keras.Model:
    """`model` with the statistics of `x` at its batch norm."""
    layer = model.get_layer(norm)
    values = np.asarray(keras.Model(model.inputs, layer.input)(x), np.float64)
    values = values.reshape(-1, values.shape[-1])
    *kept, _, _ = layer.get_weights()
    layer.set_weights([*kept, values.mean(0), values.var(0)])
    return model


def pictures(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    grey = noise_fields(100, (16, 16), 1, 0.9, rng)
    colours = 0.9 * grey + 0.45 * noise_fields(100, (16, 16), 3, 0.9, rng)
    return np.clip(low + (0.46 + 0.26 * colours) * (high - low), low, high).astype(np.float32)


def convolutional(*front: layers.Layer) -> keras.Model:
    inputs = x = keras.Input((16, 16, 3))
    for layer in front:
        x = layer(x)
    x = layers.Conv2D(32, 3, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("ends", [(0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), (-2.12, 2.64)])
def test_the_first_batch_norm_knows_the_inputs(
    ends: tuple[float, float], rng: np.random.Generator
) -> None:
    x = pictures(rng, *ends)
    model = trained(convolutional(), "norm", x)
    found = input_moments(Graph(model), model.inputs[0])
    span = ends[1] - ends[0]
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2)), atol=0.05 * span)
    assert found.deviation == pytest.approx(x.std((0, 1, 2)).mean(), rel=0.3)
    assert (found.low, found.high) == ends
    assert "'norm'" in found.source


def test_moments_of_a_dense_kernel_are_solved_exactly(rng: np.random.Generator) -> None:
    kernel, root = rng.normal(size=(3, 20)), rng.normal(size=(3, 3))
    mean, covariance = rng.normal(size=3), root @ root.T
    variance = np.einsum("cf,cd,df->f", kernel, covariance, kernel)
    got_mean, got, _ = solve_moments(kernel, kernel.T @ mean, variance)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got, covariance, rtol=1e-4, atol=1e-4 * covariance.max())


def test_padding_and_rescaling_are_looked_through(rng: np.random.Generator) -> None:
    x = pictures(rng, 0, 255)
    model = trained(convolutional(layers.Rescaling(1 / 127.5, -1)), "norm", x)
    found = input_moments(Graph(model), model.inputs[0])
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2)), atol=13)
    assert (found.low, found.high) == (0, 255)


def test_a_rescaling_tells_the_range_where_no_norm_is() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Flatten()(x))
    found = input_moments(Graph(model), model.inputs[0])
    assert (found.low, found.high, found.source) == (0, 255, "a rescaling of the inputs")


def test_a_normalization_tells_mean_and_variance(rng: np.random.Generator) -> None:
    x = rng.normal([3, -5], [1, 20], (500, 2)).astype(np.float32)
    normalization = layers.Normalization()
    normalization.adapt(x)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(3)(normalization(inputs)))
    found = input_moments(Graph(model), model.inputs[0])
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-3)
    np.testing.assert_allclose(np.diag(found.covariance), x.var(0), rtol=1e-3)


def test_a_range_that_is_given_counts() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(inputs))
    found = input_moments(Graph(model), model.inputs[0], (0.0, 10.0))
    assert (found.low, found.high) == (0, 10)
    assert not input_moments(Graph(model), model.inputs[0]).source
