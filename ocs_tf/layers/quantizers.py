"""Layers that fake-quantize activations."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ocs_tf.numerics import ActivationGrid

PACKAGE = "ocs_tf"


def fake_quantize(x: Any, grid: ActivationGrid) -> Any:
    """`x` rounded to `grid` and back, in `x`'s floating dtype."""
    codes = ops.clip(ops.round(x / grid.scale) + grid.zero_point, grid.code_min, grid.code_max)
    return (codes - grid.zero_point) * grid.scale


def grid_config(grid: ActivationGrid | None) -> dict[str, Any] | None:
    """`grid` as plain numbers, for a layer's `get_config`."""
    return None if grid is None else grid.to_dict()


def as_grid(grid: ActivationGrid | dict[str, Any] | None) -> ActivationGrid | None:
    """The inverse of `grid_config`; a grid passes through."""
    return ActivationGrid(**grid) if isinstance(grid, dict) else grid


@keras.saving.register_keras_serializable(PACKAGE)
class FakeQuantize(keras.layers.Layer):
    """Rounds its input to an activation grid and back: `(clip(round(x/s) + z) - z) * s`.

    Arguments:
        grid: the `numerics.ActivationGrid`, or its `to_dict()`.
    """

    def __init__(self, grid: ActivationGrid | dict[str, Any], **kwargs: Any) -> None:
        kwargs["trainable"] = False
        super().__init__(**kwargs)
        self.grid = as_grid(grid)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return fake_quantize(inputs, self.grid)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": grid_config(self.grid)}


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedOutput(keras.layers.Wrapper):
    """A layer without a quantized kernel whose output is rounded to an activation grid.

    It carries the wrapped layer's name, so that a converted model keeps its layer and output names.

    Arguments:
        layer: the wrapped Keras layer, with one output.
        grid: the `numerics.ActivationGrid` of the output, or its `to_dict()`.
    """

    def __init__(
        self, layer: keras.layers.Layer, grid: ActivationGrid | dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(layer, **kwargs)
        self.grid = as_grid(grid)
        self.supports_masking = layer.supports_masking

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        return fake_quantize(self.layer(inputs, **kwargs), self.grid)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": grid_config(self.grid)}
