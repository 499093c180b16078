"""Keras layers that hold a quantized kernel: integer codes, a scale and a channel map.

Each is the Keras layer it replaces, computing with the stored codes. The copies of a split channel
are added before the multiplication, as integers: the layer computes exactly what the expanded layer
would, without expanding its input. Where the input's grid is known, too, the layer adds up integers
(held in float32, exact below 2^24) and rounds its bias to their step, as integer hardware does; so
an integer runtime comes to the same sums.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.layers.quantizers import (
    PACKAGE,
    as_grid,
    exact_float32,
    fake_quantize,
    grid_config,
    requantize,
)
from ocs_tf.numerics import ActivationGrid, QuantizedKernel

QUANTIZATION_OPTIONS = (
    "weight_bits",
    "granularity",
    "copies",
    "input_grid",
    "output_grid",
    "preactivation_grid",
    "kernel_sqnr_db",
    "equalized",
)


class KernelLayer(keras.layers.Layer):
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

    Weights, none trainable: `codes` int8 in the kernel's layout with `copies` more input channels;
    `scale` float32, `()` or `[F]`; `channel_map` int32 `[C']` if there are copies; `bias` float32.
    """

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
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "trainable": False})
        self.weight_bits = weight_bits
        self.granularity = granularity
        self.copies = copies
        self.input_grid = as_grid(input_grid)
        self.output_grid = as_grid(output_grid)
        self.preactivation_grid = as_grid(preactivation_grid)
        self.kernel_sqnr_db = kernel_sqnr_db
        self.equalized = equalized

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        """Shape of the unexpanded Keras kernel; input channels on axis -2."""
        raise NotImplementedError

    @property
    def output_channels(self) -> int:
        """Output channels that may each have a scale."""
        return int(self.codes.shape[-1])

    def build(self, input_shape: Any) -> None:
        shape = list(self.kernel_shape(input_shape))
        self._channels = shape[-2]
        shape[-2] += self.copies

        def add(name: str, shape: Any, dtype: str, **options: Any) -> Any:
            # Not cast to half precision, where a small step would vanish.
            options = {"initializer": "zeros", "trainable": False, "autocast": False, **options}
            return self.add_weight(name=name, shape=shape, dtype=dtype, **options)

        self.codes = add("codes", shape, "int8")
        per_channel = self.granularity == "channel"
        self.scale = add(
            "scale",
            (self.output_channels,) if per_channel else (),
            "float32",
            initializer="ones",
        )
        self.channel_map: Any = add("channel_map", (shape[-2],), "int32") if self.copies else None
        self.bias = add("bias", (self.output_channels,), "float32") if self.use_bias else None
        self.built = True

    def effective_codes(self) -> Any:
        """Codes with copies summed back, float32 tensor in the layout of the Keras kernel."""
        codes = ops.cast(self.codes, "float32")
        if not self.copies:
            return codes
        extra = ops.moveaxis(codes[..., self._channels :, :], -2, 0)
        sums = ops.segment_sum(
            extra, self.channel_map[self._channels :], num_segments=self._channels
        )
        return codes[..., : self._channels, :] + ops.moveaxis(sums, 0, -2)

    @property
    def kernel(self) -> Any:
        """The effective float32 kernel in the layout of the Keras layer."""
        codes = self.effective_codes()
        if len(self.scale.shape) and codes.shape[-1] != self.scale.shape[0]:
            return codes * ops.reshape(self.scale, codes.shape[-2:])  # depthwise
        return codes * self.scale

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        """What the layer computes, without bias and activation function."""
        raise NotImplementedError

    def call(self, inputs: Any) -> Any:
        x, step = ops.cast(inputs, "float32"), self.scale
        if self.input_grid is not None:
            x = ops.round(x / self.input_grid.scale)
            step = exact_float32(ops.multiply, step, self.input_grid.scale)
        sums = self.apply_kernel(x, self.effective_codes())
        if self.bias is not None and self.input_grid is not None:
            sums = sums + self._per_channel(ops.round(self.bias / step), sums)
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

    def _per_channel(self, values: Any, outputs: Any) -> Any:
        """`[F]` or scalar `values` shaped to broadcast against the layer's `outputs`."""
        if len(values.shape) and getattr(self, "data_format", None) == "channels_first":
            return ops.reshape(values, (1, -1) + (1,) * (len(outputs.shape) - 2))
        return values

    def quantized_kernel(self) -> QuantizedKernel:
        """The stored kernel as NumPy arrays, in the layer's layout."""
        channels = self.codes.shape[-2] - self.copies
        mapping = (
            np.arange(channels, dtype=np.int32)
            if self.channel_map is None
            else np.asarray(self.channel_map)
        )
        return QuantizedKernel(
            np.asarray(self.codes), np.asarray(self.scale), mapping, self.weight_bits
        )

    def assign(self, kernel: QuantizedKernel, bias: np.ndarray | None) -> None:
        """Store `kernel` (codes in the layer's layout) and `bias`; the layer must be built.

        Where the input's grid is known, the bias is rounded to the step of the integer sums.
        """
        self.codes.assign(kernel.codes)
        self.scale.assign(kernel.scale)
        if self.channel_map is not None:
            self.channel_map.assign(kernel.channel_map)
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
        keras.layers.Layer.load_own_variables(self, store)

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
        }


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDense(KernelLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a quantized kernel; see `KernelLayer`."""

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        return input_shape[-1], self.units

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv2D(KernelLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a quantized kernel; see `KernelLayer`."""

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        return *self.kernel_size, channels // self.groups, self.filters

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return self.convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDepthwiseConv2D(KernelLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a quantized kernel, never split; see `KernelLayer`."""

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        return *self.kernel_size, channels, self.depth_multiplier

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def output_channels(self) -> int:
        return int(self.codes.shape[-2] * self.codes.shape[-1])
