"""Adapters: what quantization needs to know of each Keras layer type that has a kernel.

The canonical form of a kernel is `[..., C, F]`: input channels on axis -2, output channels on
axis -1. Only this module and the quantized layers know how a layer type keeps its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.layers.einsum import EinsumSpec
from ocs_tf.numerics import QuantizedKernel
from ocs_tf.numerics.patches import output_sizes, windows
from ocs_tf.process import ignored_warnings


class KernelAdapter:
    """One layer type. Subclass it, fill in what differs, and add it to `ADAPTERS`.

    A kernel has three layouts: the canonical one, `[..., C, F]`; that of the float Keras layer; and
    that in which the quantized layer stores its codes, the canonical one as a rule.
    """

    layer_class: type[keras.layers.Layer]
    quantized_class: type[layers.KernelLayer]
    kind: str  # of kernel: see `export.kernel_matching.KINDS`
    outputs_option: str | None = None  # of the layer: how many output channels it has
    is_lookup = False  # whether inputs choose rows of the kernel, instead of multiplying them

    def why_not_quantized(self, layer: keras.layers.Layer) -> str | None:
        """Why `layer` has to stay in float; `None` if it need not."""
        return None

    def why_not_split(self, layer: keras.layers.Layer) -> str | None:
        """Why `layer`'s input channels cannot be split; `None` if they can."""
        return None

    def is_direct(self, layer: keras.layers.Layer) -> bool:
        """Whether the channels of the kernel are the channels of input and output (by groups)."""
        return True

    def by_input_channel(self, layer: keras.layers.Layer, values: np.ndarray) -> np.ndarray | None:
        """Of values per element of the input's last axis, that of each input channel (by groups).

        `None` where the last axis does not tell channels apart.
        """
        return values if channel_axis(layer) == -1 else None

    def to_stored(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        """Canonical layout to that of the quantized layer's codes."""
        return kernel

    def from_stored(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        """The layout of the quantized layer's codes to that of the float layer."""
        return kernel

    def to_keras(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        """`[..., C', F]` to the layout of the float layer."""
        return self.from_stored(self.to_stored(kernel, layer), layer)

    def bias_to_keras(self, bias: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        """`[F]` to the shape of the float layer's bias."""
        return bias

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        """Float kernel in canonical form, and bias `[F]` or `None`."""
        bias = None if layer.bias is None else np.asarray(layer.bias)
        return np.asarray(layer.kernel), bias

    def write(self, layer: keras.layers.Layer, kernel: np.ndarray) -> None:
        """Give the float `layer` another kernel, in its own layout."""
        layer.set_weights([kernel, *layer.get_weights()[1:]])

    def operands(self, layer: keras.layers.Layer) -> list[slice]:
        """The output channels that each product of the float `layer` computes."""
        return [slice(None)]

    def quantized_config(self, layer: keras.layers.Layer, use_bias: bool) -> dict[str, Any]:
        """The configuration of `layer` without what only training needs."""
        config = without_training(config_of(layer))
        return self.with_bias({**config, "trainable": False}, use_bias)

    def with_bias(self, config: dict[str, Any], use_bias: bool) -> dict[str, Any]:
        """The configuration of a layer, float or quantized, with a bias or without."""
        return {**config, "use_bias": use_bias}

    def store(
        self, target: layers.KernelLayer, kernel: QuantizedKernel, bias: np.ndarray | None
    ) -> None:
        """Put a canonical `kernel` and the bias into the built quantized layer `target`."""
        codes = self.to_stored(kernel.codes, target)
        target.assign(dataclasses.replace(kernel, codes=codes), bias)

    def groups(self, layer: keras.layers.Layer) -> int:
        """Groups of output channels that read inputs of their own."""
        return 1

    def input_map(self, layer: keras.layers.Layer, channel_map: np.ndarray) -> np.ndarray:
        """The channel of the layer's input that each one of the expanded input reads.

        A copy in the kernel's `channel_map` is one in each group.
        """
        groups = self.groups(layer)
        first = np.arange(groups)[:, None] * (channel_map.max() + 1)
        return np.asarray((first + channel_map).reshape(-1))

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        """Places along each axis at which `layer` computes its output channels."""
        raise NotImplementedError

    def patches(
        self,
        layer: keras.layers.Layer,
        x: np.ndarray,
        every: int = 1,
        start: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The inputs that each output sums up (im2col): `[N, G, K]` for G groups of K inputs each.

        The inputs are in the order of a group's rows in the canonical kernel. Along each axis of
        `positions`, every so many-th place is taken, from `start` on.
        """
        raise NotImplementedError

    def float_config(self, layer: keras.layers.Layer) -> dict[str, Any]:
        """The configuration of the float layer that the quantized `layer` stands for."""
        config = config_of(layer)
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

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        return list(input_shape[1:-1])

    def patches(
        self,
        layer: keras.layers.Layer,
        x: np.ndarray,
        every: int = 1,
        start: Sequence[int] | None = None,
    ) -> np.ndarray:
        return _places(x, 1, every, start).reshape(-1, 1, x.shape[-1])


class ConvolutionAdapter(KernelAdapter):
    """What convolutions share, but for transposed ones."""

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        return output_sizes(_spatial_sizes(layer, input_shape), **_geometry(layer))

    def patches(
        self,
        layer: keras.layers.Layer,
        x: np.ndarray,
        every: int = 1,
        start: Sequence[int] | None = None,
    ) -> np.ndarray:
        x = np.moveaxis(x, channel_axis(layer), -1)
        found = windows(x, **_geometry(layer), every=every, start=start)
        groups = self.groups(layer)
        taps = found.reshape(-1, found.shape[-2], groups, found.shape[-1] // groups)
        return taps.swapaxes(1, 2).reshape(len(taps), groups, -1)


class PlainConvolutionAdapter(ConvolutionAdapter):
    """A convolution that sums over the channels of its input, in groups or all."""

    kind = "conv"
    outputs_option = "filters"

    def why_not_split(self, layer: keras.layers.Layer) -> str | None:
        if layer.groups > 1 and layer.kernel.shape[-2] == 1:
            return "a convolution with one channel in a group is quantized without splitting"
        return None

    def groups(self, layer: keras.layers.Layer) -> int:
        return int(layer.groups)


class Conv1DAdapter(PlainConvolutionAdapter):
    layer_class = keras.layers.Conv1D
    quantized_class = layers.QuantizedConv1D


class Conv2DAdapter(PlainConvolutionAdapter):
    layer_class = keras.layers.Conv2D
    quantized_class = layers.QuantizedConv2D


class Conv3DAdapter(PlainConvolutionAdapter):
    kind = "conv3d"
    layer_class = keras.layers.Conv3D
    quantized_class = layers.QuantizedConv3D


class TransposedAdapter(KernelAdapter):
    """A transposed convolution: Keras keeps its output channels in front of its input channels."""

    kind = "transposed"
    outputs_option = "filters"

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        kernel, bias = super().read(layer)
        return np.ascontiguousarray(kernel.swapaxes(-1, -2)), bias

    def from_stored(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        return np.ascontiguousarray(kernel.swapaxes(-1, -2))

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        return _spatial_sizes(layer, input_shape)

    def patches(
        self,
        layer: keras.layers.Layer,
        x: np.ndarray,
        every: int = 1,
        start: Sequence[int] | None = None,
    ) -> np.ndarray:
        # Seen from the input: each place adds its channels, by every tap, to some output. What
        # falls on the same output from several places is taken to be uncorrelated.
        x = np.moveaxis(x, channel_axis(layer), -1)
        rows = _places(x, 1, every, start).reshape(-1, 1, 1, x.shape[-1])
        taps = math.prod(layer.kernel_size)
        diagonal = rows * np.eye(taps, dtype=x.dtype)[None, :, :, None]
        return diagonal.reshape(-1, 1, taps * x.shape[-1])


class Conv1DTransposeAdapter(TransposedAdapter):
    layer_class = keras.layers.Conv1DTranspose
    quantized_class = layers.QuantizedConv1DTranspose


class Conv2DTransposeAdapter(TransposedAdapter):
    layer_class = keras.layers.Conv2DTranspose
    quantized_class = layers.QuantizedConv2DTranspose


class Conv3DTransposeAdapter(TransposedAdapter):
    kind = "transposed3d"
    layer_class = keras.layers.Conv3DTranspose
    quantized_class = layers.QuantizedConv3DTranspose


class DepthwiseAdapter(ConvolutionAdapter):
    """A depthwise convolution: each output channel reads one input channel."""

    kind = "depthwise"

    def why_not_split(self, layer: keras.layers.Layer) -> str | None:
        return "a depthwise convolution is quantized without splitting"

    def groups(self, layer: keras.layers.Layer) -> int:
        return int(layer.kernel.shape[-2])

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        kernel, bias = super().read(layer)
        return kernel.reshape(*kernel.shape[:-2], 1, -1), bias

    def to_stored(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        return kernel.reshape(*kernel.shape[:-2], -1, layer.depth_multiplier)


class DepthwiseConv1DAdapter(DepthwiseAdapter):
    layer_class = keras.layers.DepthwiseConv1D
    quantized_class = layers.QuantizedDepthwiseConv1D


class DepthwiseConv2DAdapter(DepthwiseAdapter):
    layer_class = keras.layers.DepthwiseConv2D
    quantized_class = layers.QuantizedDepthwiseConv2D


class EinsumDenseAdapter(KernelAdapter):
    layer_class = keras.layers.EinsumDense
    quantized_class = layers.QuantizedEinsumDense
    kind = "dense"

    def why_not_quantized(self, layer: keras.layers.Layer) -> str | None:
        if layer.built and not self._spec(layer).summed:
            return f"it multiplies numbers and adds up none of them ({layer.equation!r})"
        if layer.built and not self._spec(layer).regular:
            return (
                f"its kernel is not one matrix: in {layer.equation!r}, input, kernel and output"
                f" share an axis, or its bias (bias_axes={layer.bias_axes!r}) is not over all"
                " output axes of the kernel"
            )
        return None

    def is_direct(self, layer: keras.layers.Layer) -> bool:
        return self._spec(layer).direct

    def by_input_channel(self, layer: keras.layers.Layer, values: np.ndarray) -> np.ndarray | None:
        spec = self._spec(layer)
        if not spec.sums_last:
            return None
        return np.tile(values, spec.channels // len(values))  # the last axis is the innermost one

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        spec = self._spec(layer)
        kernel = np.asarray(layer.kernel).transpose(spec.axes)
        bias = None if layer.bias is None else np.asarray(layer.bias).reshape(-1)
        return kernel.reshape(spec.channels, spec.outputs), bias

    def from_stored(self, kernel: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        spec = self._spec(layer)
        return kernel.reshape(spec.ordered_shape).transpose(spec.keras_order)

    def bias_to_keras(self, bias: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
        return bias.reshape(self._spec(layer).bias_shape)

    def with_bias(self, config: dict[str, Any], use_bias: bool) -> dict[str, Any]:
        if use_bias and config["bias_axes"] is None:  # a batch norm behind a direct layer
            return {**config, "bias_axes": config["equation"].strip()[-1]}
        return config if use_bias else {**config, "bias_axes": None}

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        spec = self._spec(layer)
        return [input_shape[axis] for axis in spec.input_axes[1 : -spec.summed]]

    def patches(
        self,
        layer: keras.layers.Layer,
        x: np.ndarray,
        every: int = 1,
        start: Sequence[int] | None = None,
    ) -> np.ndarray:
        spec = self._spec(layer)
        x = x.transpose(spec.input_axes)
        return _places(x, spec.summed, every, start).reshape(-1, 1, spec.channels)

    def _spec(self, layer: keras.layers.Layer) -> EinsumSpec:
        return EinsumSpec.of(layer, layer.get_build_config()["input_shape"])


class EmbeddingAdapter(KernelAdapter):
    layer_class = keras.layers.Embedding
    quantized_class = layers.QuantizedEmbedding
    kind = "lookup"
    is_lookup = True

    def why_not_split(self, layer: keras.layers.Layer) -> str | None:
        return "a lookup reads one row; a split one would be two lookups and an addition"

    def is_direct(self, layer: keras.layers.Layer) -> bool:
        return False

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(layer.embeddings), None

    def with_bias(self, config: dict[str, Any], use_bias: bool) -> dict[str, Any]:
        return config

    def positions(self, layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
        return list(input_shape[1:])


ADAPTERS: tuple[KernelAdapter, ...] = (
    DenseAdapter(),
    EinsumDenseAdapter(),
    EmbeddingAdapter(),
    Conv1DAdapter(),
    Conv2DAdapter(),
    Conv3DAdapter(),
    DepthwiseConv1DAdapter(),
    DepthwiseConv2DAdapter(),
    Conv1DTransposeAdapter(),
    Conv2DTransposeAdapter(),
    Conv3DTransposeAdapter(),
)
_BY_CLASS: dict[type, KernelAdapter] = {adapter.layer_class: adapter for adapter in ADAPTERS}
_BY_QUANTIZED_CLASS: dict[type, KernelAdapter] = {
    adapter.quantized_class: adapter for adapter in ADAPTERS
}


def adapter_for(layer: keras.layers.Layer) -> KernelAdapter | None:
    """The adapter of a float layer. A user's subclass is not matched: it may compute otherwise."""
    adapter = None if is_keras_quantized(layer) else _BY_CLASS.get(type(layer))
    return None if adapter is None or adapter.why_not_quantized(layer) else adapter


def adapter_of_quantized(layer: keras.layers.Layer) -> KernelAdapter | None:
    """The adapter of a quantized layer."""
    return _BY_QUANTIZED_CLASS.get(type(layer))


def why_float(layer: keras.layers.Layer) -> str | None:
    """Why a layer without adapter stays in float; `None` if it has no weights to quantize."""
    if not getattr(layer, "weights", None):
        return None
    if isinstance(layer, keras.Model):
        return "a nested model is kept as it is; quantize it on its own before nesting it"
    if isinstance(layer, keras.layers.BatchNormalization):
        return "a batch norm that is not folded into a layer before it"
    if is_keras_quantized(layer):
        return f"Keras has quantized it already (quantization_mode={layer.quantization_mode!r})"
    adapter = _BY_CLASS.get(type(layer))
    why_not = adapter and adapter.why_not_quantized(layer)
    if why_not:
        return why_not
    return f"{type(layer).__name__} has no quantized form; docs/layers.md lists those that have one"


def is_keras_quantized(layer: keras.layers.Layer) -> bool:
    """Whether Keras' own `quantize` was called for `layer`."""
    return getattr(layer, "quantization_mode", None) is not None


def _places(
    x: np.ndarray, channel_axes: int, every: int, start: Sequence[int] | None
) -> np.ndarray:
    """Every so many-th place of `x`, from `start` on, on the axes between samples and channels."""
    starts = start or [0] * (x.ndim - 1 - channel_axes)
    where = (slice(None), *(slice(first, None, every) for first in starts))
    return x[where]


def _spatial_sizes(layer: keras.layers.Layer, input_shape: Sequence[int]) -> list[int]:
    """The sizes of an input but for samples and channels."""
    channels = channel_axis(layer) % len(input_shape)
    return [size for axis, size in enumerate(input_shape) if axis not in (0, channels)]


def _geometry(layer: keras.layers.Layer) -> dict[str, Any]:
    """What `numerics.patches` wants to know of a convolution."""
    return {
        "kernel": layer.kernel_size,
        "strides": layer.strides,
        "dilation": layer.dilation_rate,
        "padding": layer.padding,
    }


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """The configuration of a Keras layer with its activation functions themselves.

    Of a lambda, or a function that Keras does not know, the name does not lead back to it.
    """
    with ignored_warnings(_LAMBDA):  # it is not going to be saved
        config = layer.get_config()
    functions = {name: getattr(layer, name, None) for name in _FUNCTIONS if name in config}
    return config | {
        name: function
        for name, function in functions.items()
        if callable(function) and not isinstance(function, keras.layers.Layer)
    }


_FUNCTIONS = ("activation", "recurrent_activation")
_LAMBDA = "The object being serialized includes a `lambda`"


def without_training(config: dict[str, Any]) -> dict[str, Any]:
    """A layer's configuration without regularizers, constraints and low-rank adapters."""
    # Names differ by layer: kernel_constraint, depthwise_constraint, bias_regularizer, ...
    # and the activity regularizer only acts in training, too.
    training = ("_regularizer", "_constraint")
    lora = ("lora_rank", "lora_alpha")  # the kernel that is read has them added
    return {
        key: None if key.endswith(training) else value
        for key, value in config.items()
        if key not in lora
    }


def is_linear(activation: Any) -> bool:
    """Whether a layer's activation function is the identity."""
    return activation is None or activation is keras.activations.linear


def channel_axis(layer: keras.layers.Layer) -> int:
    """The axis of `layer`'s output that holds its channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def any_adapter(layer: keras.layers.Layer) -> KernelAdapter | None:
    """The adapter of a layer, float or quantized."""
    return adapter_for(layer) or adapter_of_quantized(layer)
