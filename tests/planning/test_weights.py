"""Thresholds and copies of kernels."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.numerics import WEIGHT_CLIPS, quantize_kernel
from tests.planning.networks import network, plan

# KL takes hundreds of histograms for each channel: with one step for the kernel only.
each_clip = pytest.mark.parametrize(
    ("granularity", "clip"),
    [
        (granularity, clip)
        for granularity in ("tensor", "channel")
        for clip in WEIGHT_CLIPS
        if (granularity, clip) != ("channel", "kl")
    ],
)


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


@pytest.mark.slow
@each_clip
def test_a_planned_kernel_is_that_of_the_numerics(
    granularity: str, clip: str, model: keras.Model
) -> None:
    options = {"weight_bits": 4, "expand_ratio": 0.3, "weight_clip": clip, "equalization": False}
    result = plan(model, granularity=granularity, percentile=99.0, **options)
    kernel = np.asarray(model.get_layer("middle").kernel)
    want = quantize_kernel(kernel, 4, 0.3, clip, granularity, percentile=99.0)
    got = result.layers["middle"].quantize(kernel)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    np.testing.assert_array_equal(got.channel_map, want.channel_map)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", ["kernel", "bias"])
def test_weights_that_are_not_finite(weight: str, value: float, model: keras.Model) -> None:
    variable = getattr(model.get_layer("middle"), weight)
    values = np.asarray(variable).copy()
    values[..., 3] = value
    variable.assign(values)
    with pytest.raises(ValueError, match=f"{weight} of layer '?middle.* must be finite"):
        plan(model)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 0.25], ids=["zero", "constant"])
@each_clip
def test_zero_and_constant_kernels(
    clip: str, granularity: str, value: float, model: keras.Model
) -> None:
    middle = model.get_layer("middle")
    middle.kernel.assign(np.full(middle.kernel.shape, value))
    options = {"weight_bits": 4, "weight_clip": clip, "granularity": granularity}
    options |= {"equalization": False}  # the kernel is looked at as it is
    result = plan(model, expand_ratio=0.2, **options)
    kernel = result.layers["middle"].quantize(np.asarray(middle.kernel)).effective_kernel()
    np.testing.assert_allclose(kernel, value, atol=0.15 * value)
    json.loads(result.to_json())


def test_one_dead_channel(model: keras.Model) -> None:
    middle = model.get_layer("middle")
    kernel = np.asarray(middle.kernel).copy()
    kernel[..., 7] = 0
    middle.kernel.assign(kernel)
    quantized = ocs_tf.apply(model, plan(model, weight_bits=4), verbose=False)
    assert (np.asarray(quantized.get_layer("middle").codes)[..., 7] == 0).all()
    assert np.isfinite(np.asarray(quantized.get_layer("middle").scale)).all()
