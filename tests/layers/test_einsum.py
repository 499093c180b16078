"""What is read from an equation is what Keras makes of it, before the layer is built, too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.layers.einsum import EinsumSpec


@pytest.mark.parametrize(
    ("equation", "input_shape", "output_shape", "bias_axes"),
    [
        ("ab,bc->ac", (2, 4), 3, "c"),
        ("ab,b->a", (2, 4), (), None),
        ("abc,cd->abd", (2, 5, 4), (None, 3), "d"),
        ("abc,bcd->ad", (2, 5, 4), 3, None),
        ("abc,cde->abde", (2, 5, 4), (5, 3, 2), "de"),
        ("abc,cde->abed", (2, 5, 4), (None, 2, 3), "ed"),
        ("abc,bd->adc", (2, 5, 4), (3, None), "d"),
        ("abcd,cde->abe", (2, 5, 3, 4), (None, 6), "e"),
        ("...x,xy->...y", (2, 5, 4), 3, "y"),
        ("...ab,bc->...ac", (2, 5, 4), (None, 3), "c"),
        ("...ab,bc->...ac", (2, 7, 5, 4), (None, 3), "c"),
        ("...ab,bc->...ac", (2, 4), 3, "c"),
        ("ab...,bc->ac...", (2, 4, 5, 6), 3, "c"),
    ],
)
def test_shapes_are_those_of_keras(
    equation: str, input_shape: tuple[int, ...], output_shape: Any, bias_axes: str | None
) -> None:
    layer = keras.layers.EinsumDense(equation, output_shape, bias_axes=bias_axes)
    spec = EinsumSpec.of(layer, input_shape)
    layer.build(input_shape)
    assert EinsumSpec.of(layer, input_shape) == spec
    assert spec.regular
    assert spec.kernel_shape == tuple(layer.kernel.shape)
    assert spec.channels * spec.outputs == np.prod(layer.kernel.shape, initial=1)
    if bias_axes:
        assert spec.bias_shape == tuple(layer.bias.shape)
    assert spec.full_output_shape == layer(np.ones(input_shape, np.float32)).shape
    pairs = zip(spec.full_output_shape, spec.output_shape, strict=True)
    assert all(own in (size, 1) for size, own in pairs)
