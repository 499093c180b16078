"""Quantized convolutions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.layers.base import KernelLayer
from ocs_tf.layers.quantizers import PACKAGE


def _channels(layer: keras.layers.Layer, input_shape: Any) -> int:
    return int(input_shape[-1 if layer.data_format == "channels_last" else 1])


class _Convolution(KernelLayer):
    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        channels = _channels(self, input_shape)
        return *self.kernel_size, channels // self.groups, self.filters

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return self.convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv1D(_Convolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a quantized kernel; see `KernelLayer`."""

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        padding = self.padding
        if padding == "causal":
            inputs, padding = ops.pad(inputs, self._compute_causal_padding()), "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a quantized kernel; see `KernelLayer`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with a quantized kernel; see `KernelLayer`."""


class _Transposed(KernelLayer):
    """A transposed convolution; Keras keeps output channels in front of input channels."""

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        return *self.kernel_size, _channels(self, input_shape), self.filters

    def keras_layout(self, kernel: Tensor) -> Tensor:
        return ops.swapaxes(kernel, -1, -2)

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv1DTranspose(_Transposed, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a quantized kernel; see `KernelLayer`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv2DTranspose(_Transposed, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a quantized kernel; see `KernelLayer`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv3DTranspose(_Transposed, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a quantized kernel; see `KernelLayer`."""


class _Depthwise(KernelLayer):
    """A depthwise convolution, never split; its codes are `[..., C, M]` for M outputs a channel."""

    may_split = False

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        return *self.kernel_size, _channels(self, input_shape), self.depth_multiplier

    def count_outputs(self, kernel_shape: tuple[int, ...]) -> int:
        return kernel_shape[-2] * kernel_shape[-1]

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDepthwiseConv1D(_Depthwise, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a quantized kernel; see `KernelLayer`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a quantized kernel; see `KernelLayer`."""
