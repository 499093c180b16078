"""Keras layers that hold a quantized kernel: integer codes, a scale and a channel map.

Each is the Keras layer it replaces, computing with the stored codes. The copies of a split channel
are added before the multiplication, as integers: the layer computes exactly what the expanded layer
would, without expanding its input. Where the input's grid is known, too, the layer adds up integers
(held in float32, exact below 2^24) and rounds its bias to their step, as integer hardware does; so
an integer runtime comes to the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.layers.checks import (
    FromConfig,
    check_copies_of,
    check_floats,
    check_grid,
    kernel_options,
    of_layer,
)
from ocs_tf.layers.quantizers import (
    exact_float32,
    fake_quantize,
    grid_config,
    power_of_two_below,
    requantize,
)
from ocs_tf.layers.storage import (
    add_kernel,
    add_weight,
    assign_kernel,
    effective_codes,
    load_kernel,
    quantized_kernel,
)
from ocs_tf.numerics import ActivationGrid, QuantizedKernel
from ocs_tf.numerics.checks import check_counts, check_switch

_GRIDS = ("input_grid", "output_grid", "preactivation_grid")
QUANTIZATION_OPTIONS = (
    "weight_bits",
    "granularity",
    "copies",
    *_GRIDS,
    "kernel_sqnr_db",
    "equalized",
    "coarse_parts",
)

_MODERATE = 2.0**20
_LARGEST_POWER = 2.0**127  # of float32


class KernelLayer(FromConfig, keras.layers.Layer):
    """Mixed into a Keras layer class, in front of it, to give it a quantized kernel.

    Arguments (besides those of the Keras layer, all keyword only):
        weight_bits: 2..8.
        granularity: `"tensor"` or `"channel"`, the shape of `scale`.
        copies: input channels added by outlier channel splitting.
        input_grid: the `ActivationGrid` that all inputs are on already, its `to_dict()`, or
            `None` where they are on none.
        output_grid: likewise, the grid the output is rounded to, after the activation function.
        preactivation_grid: likewise for what goes into the activation function, where a runtime
            computes that as a step of its own.
        kernel_sqnr_db: what quantization left of the float kernel, for reports.
        equalized: whether input channels were scaled before quantization, for reports.
        coarse_parts: how many codes of the grids the calls span that span few, for reports.

    Weights, none trainable: `codes` int8 in the kernel's layout with `copies` more input channels;
    `scale` float32, `()` or `[F]`; `channel_map` int32 `[C']` if there are copies; `bias` float32.

    Raises:
        ValueError: an argument is out of range. Weights that are loaded are checked, too.
    """

    may_split = True  # input channels

    def __init__(
        self,
        *args: Any,
        weight_bits: int,
        granularity: str = "tensor",
        copies: int = 0,
        input_grid: ActivationGrid | dict[str, Any] | None = None,
        output_grid: ActivationGrid | dict[str, Any] | None = None,
        preactivation_grid: ActivationGrid | dict[str, Any] | None = None,
        kernel_sqnr_db: float | None = None,
        equalized: bool = False,
        coarse_parts: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "trainable": False})
        self.weight_bits = weight_bits
        self.granularity = granularity
        self.copies = copies
        self.input_grid: Any = input_grid
        self.output_grid: Any = output_grid
        self.preactivation_grid: Any = preactivation_grid
        self.kernel_sqnr_db = kernel_sqnr_db
        self.equalized = equalized
        self.coarse_parts: Any = coarse_parts or {}
        self.check_config()

    def check_config(self) -> None:
        """Bring the options into their usual form.

        Raises:
            ValueError: one of them is out of range.
        """
        with of_layer(self.name):
            options = {name: getattr(self, name) for name in QUANTIZATION_OPTIONS}
            grids = {name: options.pop(name) for name in _GRIDS}
            self.equalized = check_switch("equalized", options.pop("equalized"))
            self.coarse_parts = check_counts("coarse_parts", options.pop("coarse_parts"))
            for name, value in kernel_options(**options).items():
                setattr(self, name, value)
            for name, grid in grids.items():
                setattr(self, name, None if grid is None else check_grid(name, grid))
            if self.copies and not self.may_split:
                raise ValueError(f"`copies` (={self.copies}) must be 0: it cannot be split.")

    def check_state(self) -> None:
        """Look at options and weights again; the layer must be built.

        Raises:
            ValueError: they are not those of a quantized kernel.
        """
        self.check_config()
        self.quantized_kernel()
        with of_layer(self.name):
            check_floats(self)
            for name in ("output_grid", "preactivation_grid"):
                check_copies_of(name, getattr(self, name), self.output_channels)

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        """Shape of the unexpanded codes `[..., C, F]`: input channels on axis -2."""
        raise NotImplementedError

    def keras_layout(self, kernel: Tensor) -> Tensor:
        """A kernel in the layout of `codes` in that of the Keras layer: the same, as a rule."""
        return kernel

    def count_outputs(self, kernel_shape: tuple[int, ...]) -> int:
        """How many output channels there are, which may each have a scale."""
        return kernel_shape[-1]

    def build(self, input_shape: Any = None) -> None:
        try:
            shape = self.kernel_shape(input_shape)
            self.output_channels = self.count_outputs(shape)
        except Exception as error:  # options that Keras looks at later, or not at all
            raise ValueError(
                f"layer {self.name!r}: its options give no kernel for inputs of shape"
                f" {tuple(input_shape or ())}: {error}"
            ) from error
        add_kernel(self, shape, self.output_channels)
        has_bias = self.use_bias
        self.bias = (
            add_weight(self, "bias", (self.output_channels,), "float32") if has_bias else None
        )
        self.built = True

    def effective_codes(self) -> Tensor:
        """Codes with copies summed back, float32 tensor `[..., C, F]`."""
        return effective_codes(self.codes, self.channel_map, self.copies)

    @property
    def kernel(self) -> Tensor:
        """The effective float32 kernel in the layout of the Keras layer."""
        codes = self.effective_codes()
        return self.keras_layout(codes * self._per_column(self.scale, codes))

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """The output of the layer without bias and activation function."""
        raise NotImplementedError

    def call(self, inputs: Tensor) -> Tensor:
        x, step = ops.cast(inputs, "float32"), ops.cast(self.scale, "float64")
        # Integers are added up times a power of two near their step, which changes no rounding: no
        # sum overflows or vanishes that would not in the float layer.
        of_kernel = unit = power_of_two_below(step)
        if self.input_grid is not None:
            x = ops.round(x / self.input_grid.scale)
            step = step * self.input_grid.scale
            of_input = 2.0 ** (math.frexp(self.input_grid.scale)[1] - 1)
            if 1 / _MODERATE <= of_input <= _MODERATE:  # the kernel takes both, for free
                of_kernel = unit = ops.minimum(unit * of_input, _LARGEST_POWER)
            else:
                x, unit = x * of_input, unit * of_input
        step = exact_float32(ops.divide, step, unit)  # in units, from 1 to 4 but for extreme ones
        codes = self.effective_codes()
        codes = codes * self._per_column(ops.cast(of_kernel, "float32"), codes)
        sums = self.apply_kernel(x, self.keras_layout(codes))
        if self.bias is not None and self.input_grid is not None:
            whole = ops.round(ops.cast(self.bias, "float64") / (unit * ops.cast(step, "float64")))
            sums = sums + self._per_channel(exact_float32(ops.multiply, whole, unit), sums)
        if self.output_grid is not None and self._requantizes_directly():
            outputs = requantize(sums, self._per_channel(step, sums), self.output_grid)
        else:
            outputs = sums * self._per_channel(step, sums)
        if self.bias is not None and self.input_grid is None:
            outputs = outputs + self._per_channel(self.bias, sums)
        if self.preactivation_grid is not None:
            outputs = fake_quantize(outputs, self.preactivation_grid)
        if self.activation is not None:
            outputs = self.activation(outputs)
        if self.output_grid is not None:
            outputs = fake_quantize(outputs, self.output_grid)
        return ops.cast(outputs, self.compute_dtype)

    def _per_column(self, values: Tensor, codes: Tensor) -> Tensor:
        """`[F]` or scalar `values` shaped to broadcast against the unexpanded `codes`."""
        if len(values.shape) and codes.shape[-1] != values.shape[0]:
            return ops.reshape(values, codes.shape[-2:])  # depthwise
        return values

    def _requantizes_directly(self) -> bool:
        """Whether the sums go to the output grid in one rounding, as integer hardware does it.

        A ReLU may follow that step as well as precede it: 0 is on the grid.
        """
        return self.input_grid is not None and self.activation in (
            None,
            keras.activations.linear,
            keras.activations.relu,
            keras.activations.relu6,
        )

    def _per_channel(self, values: Tensor, outputs: Tensor) -> Tensor:
        """`[F]` or scalar `values` shaped to broadcast against the layer's `outputs`."""
        if len(values.shape) and getattr(self, "data_format", None) == "channels_first":
            return ops.reshape(values, (1, -1) + (1,) * (len(outputs.shape) - 2))
        return values

    def quantized_kernel(self) -> QuantizedKernel:
        """The stored kernel as NumPy arrays, in the layout of `codes`.

        Raises:
            ValueError: what is stored is not a quantized kernel.
        """
        return quantized_kernel(self)

    def assign(self, kernel: QuantizedKernel, bias: np.ndarray | None) -> None:
        """Store `kernel` (in the layout of `codes`) and `bias`; the layer must be built.

        Where the input's grid is known, the bias is rounded to the step of the integer sums.

        Raises:
            ValueError: the layer cannot hold the kernel.
        """
        assign_kernel(self, kernel)
        if self.bias is not None:
            if self.input_grid is not None:
                step = kernel.scale.astype(np.float64) * self.input_grid.scale
                bias = np.rint(np.asarray(bias, np.float64) / step) * step
            self.bias.assign(bias)

    # Dense and the convolutions save a variable named "kernel" of their own; here the weights are
    # the ones that `build` made.
    def save_own_variables(self, store: Any) -> None:
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        load_kernel(self, store)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "granularity": self.granularity,
            "copies": self.copies,
            "input_grid": grid_config(self.input_grid),
            "output_grid": grid_config(self.output_grid),
            "preactivation_grid": grid_config(self.preactivation_grid),
            "kernel_sqnr_db": self.kernel_sqnr_db,
            "equalized": self.equalized,
            **({"coarse_parts": self.coarse_parts} if self.coarse_parts else {}),
        }
