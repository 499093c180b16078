"""Layers that fake-quantize activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.layers.checks import FromConfig, check_grid, of_layer
from ocs_tf.numerics import ActivationGrid, OracleGrid, code_limit
from ocs_tf.numerics.checks import check_counts

PACKAGE = "ocs_tf"
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_EXPONENTS = range(-300, 301)  # of steps, and products of two
_POWERS = np.ldexp(1.0, np.asarray(_EXPONENTS))


def fake_quantize(x: Tensor, grid: ActivationGrid) -> Tensor:
    """`x` rounded to `grid` and back, in `x`'s floating dtype."""
    # In half precision a scale can vanish, and a 16-bit code has no exact representation.
    wide = ops.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x
    codes = _clip(ops.round(wide / grid.scale) + grid.zero_point, grid)
    return ops.cast((codes - grid.zero_point) * grid.scale, x.dtype)


def requantize(sums: Tensor, step: Tensor, grid: ActivationGrid) -> Tensor:
    """`sums` of `step` each, rounded to `grid` by the one factor that hardware uses."""
    factor = exact_float32(ops.divide, step, grid.scale)
    codes = _clip(ops.round(sums * factor) + grid.zero_point, grid)
    return (codes - grid.zero_point) * grid.scale


def power_of_two_below(values: Tensor) -> Tensor:
    """The largest powers of two that are not above positive `values`, or next to them; float64."""
    exponents = ops.floor(ops.log2(ops.cast(values, "float64")))
    # Looked up: not all backends compute powers exactly.
    index = ops.cast(exponents, "int32") - _EXPONENTS[0]
    return ops.take(ops.convert_to_tensor(_POWERS), index)


def _clip(codes: Tensor, grid: ActivationGrid) -> Tensor:
    """`codes` within the bounds of `grid`: with split channels, those differ on the last axis."""
    low, high = grid.code_bounds(codes.shape[-1] if grid.copies else 1)
    if not grid.copies:
        return ops.clip(codes, low, high)
    return ops.clip(codes, ops.cast(low, codes.dtype), ops.cast(high, codes.dtype))


def exact_float32(operation: Callable[[Any, Any], Any], x: Tensor, constant: Any) -> Tensor:
    """`operation(x, constant)` rounded once to float32, as runtimes compute it.

    `constant` is a number or a float64 tensor. Left in float32, a graph optimizer would multiply by
    a reciprocal, or reorder factors. What is too large for float32 becomes its largest number:
    infinity times 0 would not be 0.
    """
    exact = operation(ops.cast(x, "float64"), constant)
    return ops.cast(ops.clip(exact, -_LARGEST, _LARGEST), "float32")


def grid_config(grid: ActivationGrid | None) -> dict[str, Any] | None:
    """`grid` as plain numbers, for a layer's `get_config`."""
    return None if grid is None else grid.to_dict()


@keras.saving.register_keras_serializable(PACKAGE)
class FakeQuantize(FromConfig, keras.layers.Layer):
    """Rounds its input to an activation grid and back: `(clip(round(x/s) + z) - z) * s`.

    Arguments:
        grid: the `numerics.ActivationGrid`, or its `to_dict()`.
        coarse_parts: how many codes the parts of the input span that span few, by the name of the
            layer that makes them, or the calls that do; for reports.

    Raises:
        ValueError: an argument is of another type or out of range.
    """

    def __init__(
        self,
        grid: ActivationGrid | dict[str, Any],
        coarse_parts: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["trainable"] = False
        super().__init__(**kwargs)
        with of_layer(self.name):
            self.grid: ActivationGrid = check_grid("grid", grid)
            self.coarse_parts = check_counts("coarse_parts", coarse_parts or {})
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return fake_quantize(ops.convert_to_tensor(inputs), self.grid)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        parts = {"coarse_parts": self.coarse_parts} if self.coarse_parts else {}
        return {**super().get_config(), "grid": grid_config(self.grid), **parts}


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedOutput(FromConfig, keras.layers.Wrapper):  # type: ignore[misc]
    """A layer without a quantized kernel whose output is rounded to an activation grid.

    It carries the wrapped layer's name, so that a converted model keeps its layer and output names.

    Arguments:
        layer: the wrapped Keras layer, with one output.
        grid: the `numerics.ActivationGrid` of the output, or its `to_dict()`.
        coarse_parts: as in `FakeQuantize`.

    Raises:
        ValueError: an argument is of another type or out of range.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        grid: ActivationGrid | dict[str, Any],
        coarse_parts: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        with of_layer(self.name):
            self.grid: ActivationGrid = check_grid("grid", grid)
            self.coarse_parts = check_counts("coarse_parts", coarse_parts or {})
        self.supports_masking = layer.supports_masking

    def call(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        if isinstance(outputs, (list, tuple, dict)):
            raise ValueError(f"layer {self.name!r} has several outputs, and one grid.")
        return fake_quantize(outputs, self.grid)

    def compute_output_spec(self, inputs: Tensor) -> Any:
        # Not found out by tracing `call`: TensorFlow takes some names only outside of functions.
        return self.layer.compute_output_spec(inputs)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor = None) -> Tensor:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        parts = {"coarse_parts": self.coarse_parts} if self.coarse_parts else {}
        return {**super().get_config(), "grid": grid_config(self.grid), **parts}


@keras.saving.register_keras_serializable(PACKAGE)
class OracleQuantize(FromConfig, keras.layers.Layer):
    """Rounds each batch to a grid of its own, with the channels split that need it most.

    For simulation only; see `numerics.OracleGrid`. Channels are on the last axis.

    Arguments:
        grid: the `OracleGrid`, or its `to_dict()`.

    Raises:
        ValueError: `grid` is neither.
    """

    def __init__(self, grid: OracleGrid | dict[str, Any], **kwargs: Any) -> None:
        kwargs["trainable"] = False
        super().__init__(**kwargs)
        with of_layer(self.name):
            self.grid: OracleGrid = check_grid("grid", grid, OracleGrid)
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        x = ops.cast(inputs, "float32")
        axes = tuple(range(len(x.shape) - 1))
        smallest, largest = ops.min(x, axes), ops.max(x, axes)
        k = self._code_counts(ops.maximum(-smallest, largest))
        low = ops.minimum(ops.min(smallest / k), 0.0)
        high = ops.maximum(ops.max(largest / k), 0.0)
        limit = float(code_limit(self.grid.bits))
        if self.grid.symmetric:
            step = ops.maximum(ops.maximum(-low, high) / limit, _SMALLEST)
            below, above = -limit, limit
        else:
            levels = 2 * limit + 1
            step = ops.maximum(high / levels - low / levels, _SMALLEST)
            below = ops.clip(ops.round(low / step), -levels, 0)
            above = below + levels
        return ops.cast(ops.clip(ops.round(x / step), k * below, k * above) * step, inputs.dtype)

    def _code_counts(self, magnitudes: Tensor) -> Tensor:
        """How many codes hold each channel, float32 `[C]`: `copies_by_maximum` in closed form.

        It takes the largest of all quotients `magnitude / k` that are still above the next one.
        """
        if not self.grid.count:
            return ops.ones_like(magnitudes)
        k = ops.arange(1, self.grid.count + 2, dtype="float32")
        quotients = magnitudes[:, None] / k
        largest, _ = ops.top_k(ops.reshape(quotients, (-1,)), self.grid.count + 1)
        return 1 + ops.sum(ops.cast(quotients > largest[-1], "float32"), 1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": self.grid.to_dict()}


def unwrapped(layer: Any) -> Any:
    """The layer that a `QuantizedOutput` wraps, or `layer` itself."""
    return layer.layer if isinstance(layer, QuantizedOutput) else layer


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedAveragePooling(QuantizedOutput):
    """An average pooling, or a bilinear resizing, whose input and output are on one grid.

    It takes the mean of the codes and rounds ties away from code 0, as TFLite's kernels do.
    """

    def call(self, inputs: Tensor) -> Tensor:
        grid = self.grid
        x = ops.round(ops.cast(inputs, "float32") / grid.scale)
        codes = self.layer(x) + grid.zero_point
        codes = ops.sign(codes) * ops.floor(ops.abs(codes) + 0.5)
        codes = ops.clip(codes, grid.code_min, grid.code_max)
        return ops.cast((codes - grid.zero_point) * grid.scale, self.compute_dtype)
