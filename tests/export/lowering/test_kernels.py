"""Kernels of float layers are codes times scales, whatever goes into the scales."""

from __future__ import annotations

import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export.lowering import lower
from tests.export.lowering.networks import CHAINS, SHAPE, build, chain, names_of_layers, split


def test_kernels_are_codes_times_scale_exactly(randomize):
    quantized = split(randomize(chain(*CHAINS["depthwise"]())), granularity="channel")
    lowered = lower(quantized)
    for kernel in lowered.kernels:
        weights = np.asarray(lowered.model.get_layer(kernel.layer).kernel)
        scale = kernel.scale
        if kernel.kind == "depthwise":
            scale = scale.reshape(kernel.codes.shape[-2:])
        np.testing.assert_array_equal(weights, kernel.codes.astype(np.float32) * scale)


@pytest.mark.parametrize("kind", ["conv", "dense", "depthwise"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_batch_norm_behind_goes_into_the_scale(kind, granularity, randomize, rng):
    layer = {
        "conv": layers.Conv2D(5, 3, name="k"),
        "dense": layers.Dense(5, name="k"),
        "depthwise": layers.DepthwiseConv2D(3, name="k"),
    }[kind]
    model = randomize(
        build(lambda x: layers.ReLU()(layers.BatchNormalization(name="bn")(layer(x))))
    )
    norm = model.get_layer("bn")
    norm.gamma.assign(np.asarray(norm.gamma) * rng.choice([-1, 1], norm.gamma.shape))
    quantized = ocs_tf.convert(model, fold_batch_norm=False, granularity=granularity, verbose=False)
    lowered = lower(quantized, batch_size=None)
    assert "bn" not in names_of_layers(lowered.model)
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-4
    )


def test_dead_channel_does_not_get_a_tiny_step(randomize):
    model = randomize(chain())
    kernel = np.asarray(model.get_layer("first").kernel).copy()
    kernel[..., 0] = 1e-20
    model.get_layer("first").kernel.assign(kernel)
    (first, _) = lower(ocs_tf.convert(model, verbose=False)).kernels
    assert first.scale.min() >= first.scale.max() * 2.0**-13 * 0.999
    assert not first.codes[..., 0].any()
