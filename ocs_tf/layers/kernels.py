"""Keras layers that hold a quantized kernel: integer codes, a scale and a channel map.

Each is the Keras layer it replaces, with its kernel computed from the stored codes. The copies of a
split channel are added before the multiplication, as integers: the layer computes exactly what the
expanded layer would, without expanding its input.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.layers.quantizers import PACKAGE, as_grid, fake_quantize, grid_config
from ocs_tf.numerics import ActivationGrid, QuantizedKernel


class KernelLayer(keras.layers.Layer):
    """Mixed into a Keras layer class, in front of it, to give it a quantized kernel.

    Arguments (besides those of the Keras layer, all keyword only):
        weight_bits: 2..8.
        granularity: `"tensor"` or `"channel"`, the shape of `scale`.
        copies: input channels added by outlier channel splitting.
        output_grid: the `ActivationGrid` the output is rounded to (after the activation
            function), its `to_dict()`, or `None`.
        preactivation_grid: likewise for what goes into the activation function, where a runtime
            computes that as a step of its own.
        kernel_sqnr_db: what quantization left of the float kernel, for reports.

    Weights, none trainable: `codes` int8 in the kernel's layout with `copies` more input channels;
    `scale` float32, `()` or `[F]`; `channel_map` int32 `[C']` if there are copies; `bias` float32.
    """

    def __init__(
        self,
        *args: Any,
        weight_bits: int,
        granularity: str = "tensor",
        copies: int = 0,
        output_grid: ActivationGrid | dict[str, Any] | None = None,
        preactivation_grid: ActivationGrid | dict[str, Any] | None = None,
        kernel_sqnr_db: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "trainable": False})
        self.weight_bits = weight_bits
        self.granularity = granularity
        self.copies = copies
        self.output_grid = as_grid(output_grid)
        self.preactivation_grid = as_grid(preactivation_grid)
        self.kernel_sqnr_db = kernel_sqnr_db

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

        def add(name: str, shape: Any, dtype: str, initializer: str = "zeros") -> Any:
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer=initializer, trainable=False
            )

        self.codes = add("codes", shape, "int8")
        per_channel = self.granularity == "channel"
        self.scale = add("scale", (self.output_channels,) if per_channel else (), "float32", "ones")
        self.channel_map = add("channel_map", (shape[-2],), "int32") if self.copies else None
        self.bias = add("bias", (self.output_channels,), "float32") if self.use_bias else None
        self.built = True

    @property
    def kernel(self) -> Any:
        """The effective float kernel in the layout and compute dtype of the Keras layer."""
        codes = ops.cast(self.codes, "float32")
        if self.copies:
            extra = ops.moveaxis(codes[..., self._channels :, :], -2, 0)
            sums = ops.segment_sum(
                extra, self.channel_map[self._channels :], num_segments=self._channels
            )
            codes = codes[..., : self._channels, :] + ops.moveaxis(sums, 0, -2)
        return ops.cast(codes * self._kernel_scale(), self.compute_dtype)

    def _kernel_scale(self) -> Any:
        return self.scale

    def apply_kernel(self, inputs: Any, kernel: Any) -> Any:
        """What the layer computes, without bias and activation function."""
        raise NotImplementedError

    def call(self, inputs: Any) -> Any:
        outputs = self.apply_kernel(inputs, self.kernel)
        if self.bias is not None:
            bias = ops.cast(self.bias, self.compute_dtype)
            if getattr(self, "data_format", None) == "channels_first":
                bias = ops.reshape(bias, (1, -1) + (1,) * (len(outputs.shape) - 2))
            outputs = outputs + bias
        if self.preactivation_grid is not None:
            outputs = fake_quantize(outputs, self.preactivation_grid)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs if self.output_grid is None else fake_quantize(outputs, self.output_grid)

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
        """Store `kernel` (codes in the layer's layout) and `bias`; the layer must be built."""
        self.codes.assign(kernel.codes)
        self.scale.assign(kernel.scale)
        if self.channel_map is not None:
            self.channel_map.assign(kernel.channel_map)
        if self.bias is not None:
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
            "output_grid": grid_config(self.output_grid),
            "preactivation_grid": grid_config(self.preactivation_grid),
            "kernel_sqnr_db": self.kernel_sqnr_db,
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

    def _kernel_scale(self) -> Any:
        if self.granularity == "tensor":
            return self.scale
        return ops.reshape(self.scale, self.codes.shape[-2:])
