"""The lowered graph: same function, plain layers; the quantized model stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export.lowering import lower
from tests.export.lowering.networks import SHAPE, build, chain, split


def test_batch_norm_alone_becomes_a_depthwise_convolution(randomize, rng):
    def function(x):
        return layers.Conv2D(3, 1, name="k")(layers.BatchNormalization(name="bn")(layers.ReLU()(x)))

    quantized = ocs_tf.convert(randomize(build(function)), verbose=False)
    lowered = lower(quantized, batch_size=None)
    assert type(lowered.model.get_layer("bn")) is layers.DepthwiseConv2D
    (kernel,) = [k for k in lowered.kernels if k.layer == "bn"]
    assert set(np.abs(kernel.codes).ravel()) == {127}
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)], ids=str)
def test_batch_norm_alone_of_any_rank(shape, randomize, rng):
    """Called twice, and in front of a kernel that the converter must not change."""

    def function(x):
        norm = layers.BatchNormalization(name="n")
        return layers.Dense(4, name="second")(norm(layers.ReLU()(norm(x))))

    quantized = split(randomize(build(function, shape)))
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    assert isinstance(lowered.model.get_layer("n"), layers.DepthwiseConv2D)
    np.testing.assert_allclose(lowered.model(x), quantized(x), rtol=1e-5, atol=1e-5)


def test_batch_norm_over_another_axis_stays(randomize, rng):
    norm = layers.BatchNormalization(axis=1, name="n")
    quantized = split(randomize(build(lambda x: layers.Conv2D(4, 1, name="c")(norm(x)), (6, 6, 6))))
    x = rng.normal(size=(2, 6, 6, 6)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    np.testing.assert_allclose(lowered.model(x), quantized(x), rtol=1e-5, atol=1e-5)


def test_shared_layer_with_an_activation_function_apart(randomize, rng):
    layer = layers.Dense(6, activation="softmax", name="twice")
    quantized = split(randomize(build(lambda x: layer(layer(x)))))
    x = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    np.testing.assert_allclose(lowered.model(x), quantized(x), atol=1e-6)


def test_input_model_is_left_alone(randomize):
    quantized = split(randomize(chain(layers.ReLU())))
    before = [w.copy() for w in quantized.get_weights()], quantized.get_config()
    lower(quantized)
    assert quantized.get_config() == before[1]
    for old, new in zip(before[0], quantized.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
