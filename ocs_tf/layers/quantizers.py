"""Layers that fake-quantize activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from ocs_tf.numerics import ActivationGrid

PACKAGE = "ocs_tf"


def fake_quantize(x: Any, grid: ActivationGrid) -> Any:
    """`x` rounded to `grid` and back, in `x`'s floating dtype."""
    # In half precision a scale can vanish, and a 16-bit code has no exact representation.
    wide = ops.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x
    codes = ops.clip(ops.round(wide / grid.scale) + grid.zero_point, grid.code_min, grid.code_max)
    return ops.cast((codes - grid.zero_point) * grid.scale, x.dtype)


def requantize(sums: Any, step: Any, grid: ActivationGrid) -> Any:
    """Integer `sums` of `step` each, rounded to `grid` by the one factor that hardware uses."""
    factor = exact_float32(ops.divide, step, grid.scale)
    codes = ops.clip(ops.round(sums * factor) + grid.zero_point, grid.code_min, grid.code_max)
    return (codes - grid.zero_point) * grid.scale


def exact_float32(operation: Callable[[Any, Any], Any], x: Any, constant: float) -> Any:
    """`operation(x, constant)` rounded once to float32, as runtimes compute it.

    Left in float32, a graph optimizer would multiply by a reciprocal, or reorder factors.
    """
    return ops.cast(operation(ops.cast(x, "float64"), constant), "float32")


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
        self.grid = ActivationGrid(**grid) if isinstance(grid, dict) else grid
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
        self,
        layer: keras.layers.Layer,
        grid: ActivationGrid | dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.grid = ActivationGrid(**grid) if isinstance(grid, dict) else grid
        self.supports_masking = layer.supports_masking

    def call(self, inputs: Any) -> Any:
        return fake_quantize(self.layer(inputs), self.grid)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": grid_config(self.grid)}


def unwrapped(layer: Any) -> Any:
    """The layer that a `QuantizedOutput` wraps, or `layer` itself."""
    return layer.layer if isinstance(layer, QuantizedOutput) else layer


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedAveragePooling(QuantizedOutput):
    """An average pooling whose input and output are on one grid.

    It takes the mean of the codes and rounds ties away from code 0, as TFLite's kernels do.
    """

    def call(self, inputs: Any) -> Any:
        grid = self.grid
        x = ops.round(ops.cast(inputs, "float32") / grid.scale)
        codes = self.layer(x) + grid.zero_point
        codes = ops.sign(codes) * ops.floor(ops.abs(codes) + 0.5)
        codes = ops.clip(codes, grid.code_min, grid.code_max)
        return ops.cast((codes - grid.zero_point) * grid.scale, self.compute_dtype)
