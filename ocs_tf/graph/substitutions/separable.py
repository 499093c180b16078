"""A separable convolution as the two that it consists of: one by channel, and a 1x1 behind it."""

from __future__ import annotations

from typing import Any

import keras

_PARTS = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}


def is_separable(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is one of Keras' separable convolutions (and no subclass of one)."""
    return type(layer) in _PARTS


def parts(layer: keras.layers.Layer) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """The depthwise convolution and the 1x1 convolution of `layer`, with copies of its weights."""
    depthwise_class, pointwise_class = _PARTS[type(layer)]
    shared = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
    depthwise = depthwise_class(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **shared,
    )
    pointwise = pointwise_class(
        layer.filters,
        1,
        activation=layer.activation,
        use_bias=layer.use_bias,
        name=layer.name,
        **shared,
    )
    _fill(depthwise, layer, layer.depthwise_kernel.shape[-2], [layer.depthwise_kernel])
    weights = [layer.pointwise_kernel, *([layer.bias] if layer.use_bias else [])]
    _fill(pointwise, layer, layer.pointwise_kernel.shape[-2], weights)
    return depthwise, pointwise


def _fill(
    part: keras.layers.Layer, layer: keras.layers.Layer, channels: int, weights: list[Any]
) -> None:
    """Build `part` for inputs of so many channels, and give it `weights`."""
    sizes = (None,) * layer.rank
    last = layer.data_format == "channels_last"
    part.build((None, *sizes, channels) if last else (None, channels, *sizes))
    for variable, value in zip(part.weights, weights, strict=True):
        variable.assign(value)
