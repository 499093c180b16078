"""Adapters: what quantization needs to know of each Keras layer type that has a kernel.

The canonical form of a kernel is `[..., C, F]`: input channels on axis -2, output channels on
axis -1. Only this module and the quantized layers know how a layer type keeps its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.numerics import QuantizedKernel
from ocs_tf.numerics.windows import output_sizes, windows


class KernelAdapter:
    """One layer type. Subclass it, fill in what differs, and add it to `ADAPTERS`."""

    layer_class: type[keras.layers.Layer]
    quantized_class: type[layers.KernelLayer]
    kind: str  # of kernel: "dense", "conv" or "depthwise"
    outputs_option: str | None  # of the layer: how many output channels it has

    def why_not_split(self, layer: Any) -> str | None:
        """Why `layer`'s input channels cannot be split; `None` if they can."""
        return None

    def to_canonical(self, kernel: np.ndarray) -> np.ndarray:
        """Keras layout to `[..., C, F]`."""
        return kernel

    def to_keras(self, kernel: np.ndarray, layer: Any) -> np.ndarray:
        """`[..., C', F]` to the layout of `layer`."""
        return kernel

    def read(self, layer: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Float kernel in canonical form, and bias `[F]` or `None`."""
        bias = None if layer.bias is None else np.asarray(layer.bias)
        return self.to_canonical(np.asarray(layer.kernel)), bias

    def quantized_config(self, layer: Any, use_bias: bool) -> dict[str, Any]:
        """The configuration of `layer` without what only training needs."""
        config = layer.get_config()
        # Names differ by layer: kernel_constraint, depthwise_constraint, bias_regularizer, ...
        # and the activity regularizer only acts in training, too.
        for key in config:
            if key.endswith(("_regularizer", "_constraint")):
                config[key] = None
        return {**config, "use_bias": use_bias, "trainable": False}

    def store(self, target: Any, kernel: QuantizedKernel, bias: np.ndarray | None) -> None:
        """Put a canonical `kernel` and the bias into the built quantized layer `target`."""
        codes = self.to_keras(kernel.codes, target)
        target.assign(dataclasses.replace(kernel, codes=codes), bias)

    def groups(self, layer: Any) -> int:
        """Groups of output channels that read inputs of their own."""
        return 1

    def positions(self, layer: Any, input_shape: Sequence[int]) -> list[int]:
        """Places along each axis at which `layer` computes its output channels."""
        raise NotImplementedError

    def patches(
        self, layer: Any, x: np.ndarray, every: int = 1, start: Sequence[int] | None = None
    ) -> np.ndarray:
        """What outputs are weighted sums of: `[N, G, K]` for G groups of K inputs each.

        The inputs are in the order of a group's rows in the canonical kernel. Along each axis of
        `positions`, every so many-th place is taken, from `start` on.
        """
        raise NotImplementedError

    def float_config(self, layer: Any) -> dict[str, Any]:
        """The configuration of the float layer that the quantized `layer` stands for."""
        config = layer.get_config()
        return {k: v for k, v in config.items() if k not in layers.QUANTIZATION_OPTIONS}

    def repeat_outputs(
        self, config: dict[str, Any], weights: list[np.ndarray], channel_map: np.ndarray
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Configuration and weights (Keras layout) with the output channels of `channel_map`."""
        assert self.outputs_option is not None
        config = {**config, self.outputs_option: len(channel_map)}
        return config, [w[..., channel_map] if w.ndim else w for w in weights]


class DenseAdapter(KernelAdapter):
    layer_class = keras.layers.Dense
    quantized_class = layers.QuantizedDense
    kind = "dense"
    outputs_option = "units"

    def positions(self, layer: Any, input_shape: Sequence[int]) -> list[int]:
        return list(input_shape[1:-1])

    def patches(
        self, layer: Any, x: np.ndarray, every: int = 1, start: Sequence[int] | None = None
    ) -> np.ndarray:
        starts = start or [0] * (x.ndim - 2)
        where = (slice(None), *(slice(first, None, every) for first in starts))
        return x[where].reshape(-1, 1, x.shape[-1])


class ConvolutionAdapter(KernelAdapter):
    """What convolutions of any kind share."""

    def positions(self, layer: Any, input_shape: Sequence[int]) -> list[int]:
        channels = channel_axis(layer) % len(input_shape)
        sizes = [size for axis, size in enumerate(input_shape) if axis not in (0, channels)]
        return output_sizes(sizes, **_geometry(layer))

    def patches(
        self, layer: Any, x: np.ndarray, every: int = 1, start: Sequence[int] | None = None
    ) -> np.ndarray:
        x = np.moveaxis(x, channel_axis(layer), -1)
        found = windows(x, **_geometry(layer), every=every, start=start)
        groups = self.groups(layer)
        taps = found.reshape(-1, found.shape[-2], groups, found.shape[-1] // groups)
        return taps.swapaxes(1, 2).reshape(len(taps), groups, -1)


class Conv2DAdapter(ConvolutionAdapter):
    layer_class = keras.layers.Conv2D
    quantized_class = layers.QuantizedConv2D
    kind = "conv"
    outputs_option = "filters"

    def why_not_split(self, layer: Any) -> str | None:
        if layer.groups > 1:
            return f"a grouped convolution (groups={layer.groups}) is quantized without splitting"
        return None

    def groups(self, layer: Any) -> int:
        return int(layer.groups)


class DepthwiseConv2DAdapter(ConvolutionAdapter):
    layer_class = keras.layers.DepthwiseConv2D
    quantized_class = layers.QuantizedDepthwiseConv2D
    kind = "depthwise"
    outputs_option = None

    def why_not_split(self, layer: Any) -> str | None:
        return "a depthwise convolution is quantized without splitting"

    def groups(self, layer: Any) -> int:
        return int(layer.kernel.shape[-2])

    def to_canonical(self, kernel: np.ndarray) -> np.ndarray:
        return kernel.reshape(*kernel.shape[:-2], 1, -1)

    def to_keras(self, kernel: np.ndarray, layer: Any) -> np.ndarray:
        return kernel.reshape(*kernel.shape[:-2], -1, layer.depth_multiplier)


ADAPTERS: tuple[KernelAdapter, ...] = (DenseAdapter(), Conv2DAdapter(), DepthwiseConv2DAdapter())
_BY_CLASS = {adapter.layer_class: adapter for adapter in ADAPTERS}
_BY_QUANTIZED_CLASS = {adapter.quantized_class: adapter for adapter in ADAPTERS}


def adapter_for(layer: Any) -> KernelAdapter | None:
    """The adapter of a float layer. A user's subclass is not matched: it may compute otherwise."""
    return None if _is_keras_quantized(layer) else _BY_CLASS.get(type(layer))


def adapter_of_quantized(layer: Any) -> KernelAdapter | None:
    """The adapter of a quantized layer."""
    return _BY_QUANTIZED_CLASS.get(type(layer))


def why_float(layer: Any) -> str | None:
    """Why a layer without adapter stays in float; `None` if it has no weights to quantize."""
    if not getattr(layer, "weights", None):
        return None
    if isinstance(layer, keras.Model):
        return "a nested model is kept as it is; quantize it on its own before nesting it"
    if isinstance(layer, keras.layers.BatchNormalization):
        return "a batch norm that is not folded into a layer before it"
    if _is_keras_quantized(layer):
        return f"Keras has quantized it already (quantization_mode={layer.quantization_mode!r})"
    known = ", ".join(adapter.layer_class.__name__ for adapter in ADAPTERS)
    return f"{type(layer).__name__} has no quantized form; those that have one: {known}"


def _is_keras_quantized(layer: Any) -> bool:
    return getattr(layer, "quantization_mode", None) is not None


def _geometry(layer: Any) -> dict[str, Any]:
    """What `numerics.windows` wants to know of a convolution."""
    return {
        "kernel": layer.kernel_size,
        "strides": layer.strides,
        "dilation": layer.dilation_rate,
        "padding": layer.padding,
    }


def is_linear(activation: Any) -> bool:
    """Whether a layer's activation function is the identity."""
    return activation is None or activation is keras.activations.linear


def channel_axis(layer: Any) -> int:
    """The axis of `layer`'s output that holds its channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def any_adapter(layer: Any) -> KernelAdapter | None:
    """The adapter of a layer, float or quantized."""
    return adapter_for(layer) or adapter_of_quantized(layer)
