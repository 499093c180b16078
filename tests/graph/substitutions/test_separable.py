"""Separable convolutions as two: exactly the same function, for all that they can be."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocs_tf.graph.substitutions.separable import is_separable, parts

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "same": {"padding": "same"},
    "strides": {"strides": 2, "padding": "same"},
    "dilation": {"dilation_rate": 2},
    "multiplier": {"depth_multiplier": 3},
    "no-bias": {"use_bias": False},
    "activation": {"activation": "relu"},
    "channels-first": {"data_format": "channels_first"},
    "half": {"dtype": "mixed_bfloat16"},
}
CLASSES = {1: layers.SeparableConv1D, 2: layers.SeparableConv2D}


@pytest.mark.parametrize("rank", CLASSES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_parts_compute_what_the_whole_does(
    rank: int, options: dict[str, Any], rng: np.random.Generator
) -> None:
    layer = CLASSES[rank](5, 3, bias_initializer="normal", name="both", **options)
    first = options.get("data_format") == "channels_first"
    shape = (2, 4, *[9] * rank) if first else (2, *[9] * rank, 4)
    x = rng.normal(size=shape).astype(np.float32)
    layer.build(shape)
    depthwise, pointwise = parts(layer)
    assert (depthwise.name, pointwise.name) == ("both_depthwise", "both")
    # Not every CPU has kernels for channels_first; XLA has.
    want, got = tf.function(
        lambda x: (layer(x), pointwise(depthwise(x))), jit_compile=True if first else None
    )(x)
    assert got.dtype == want.dtype
    tolerance = 1e-6 if want.dtype == np.float32 else 2**-6  # bfloat16 has 8 bits
    want, got = (np.asarray(y, np.float32) for y in (want, got))
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


class OwnSeparable(layers.SeparableConv2D):
    """A user's subclass, which may compute anything."""


def test_what_is_separable() -> None:
    assert is_separable(layers.SeparableConv1D(2, 3))
    assert is_separable(layers.SeparableConv2D(2, 3))
    assert not is_separable(OwnSeparable(2, 3))
    assert not is_separable(layers.Conv2D(2, 3))
    assert not is_separable(keras.Sequential())
