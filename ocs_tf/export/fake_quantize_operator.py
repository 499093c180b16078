"""Rounding of activations as an operator of a float graph, which the converter keeps as it is."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ocs_tf.export.custom_operator import custom_operator
from ocs_tf.keras_types import Tensor
from ocs_tf.numerics import ActivationGrid
from ocs_tf.runtime import operators


class RoundingOperator(keras.layers.Layer):
    """Rounds to an activation grid and back; `OcsFakeQuantize` in a `.tflite` file.

    It multiplies by the reciprocal of the step where `layers.FakeQuantize` divides: a value next to
    the middle between two codes may go to the other one.

    Arguments:
        grid: the `numerics.ActivationGrid`.
    """

    def __init__(self, grid: ActivationGrid, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid
        self.supports_masking = True
        self._operator = custom_operator(_fake_quantize, operators.FAKE_QUANTIZE)

    def call(self, inputs: Tensor) -> Tensor:
        grid = self.grid
        function = _fake_quantize if tf.executing_eagerly() else self._operator
        outputs = function(
            inputs,
            tf.constant([1.0 / grid.scale], tf.float32),
            tf.constant([grid.scale], tf.float32),
            tf.constant(
                [operators.FORMAT_VERSION, grid.code_min, grid.code_max, grid.zero_point], tf.int32
            ),
        )
        return tf.ensure_shape(outputs, inputs.shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def _fake_quantize(x: Tensor, inv_scale: Any, scale: Any, meta: Any) -> Tensor:
    """What the operator computes, `x` being finite."""
    low = tf.cast(meta[1] - meta[3], tf.float32)
    high = tf.cast(meta[2] - meta[3], tf.float32)
    return tf.clip_by_value(tf.round(x * inv_scale), low, high) * scale
