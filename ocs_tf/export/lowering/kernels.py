"""Kernels and biases of quantized layers, as a float layer or a file holds them."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.export.form import Form
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.affine import affine
from ocs_tf.numerics import QuantizedKernel
from ocs_tf.numerics.activation_splitting import repeat_inputs, split_outputs
from ocs_tf.planning.weights import SMALLEST_CHANNEL

_CONVOLUTIONS = ("conv", "depthwise", "transposed")


def adapter_of(layer: keras.layers.Layer) -> adapters.KernelAdapter:
    """The adapter of a quantized layer with one kernel."""
    adapter = adapters.adapter_of_quantized(layer)
    assert adapter is not None
    return adapter


def inside(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The quantized kernels inside of a composite, by path."""
    layer = layers.unwrapped(layer)
    return {} if isinstance(layer, layers.KernelLayer) else composites.stored_parts(layer)


def quantized(layer: keras.layers.Layer, form: Form) -> tuple[QuantizedKernel, np.ndarray | None]:
    """Kernel in the layer's layout, and bias, for the copies of split activations."""
    kernel = layer.quantized_kernel()
    bias = None if layer.bias is None else np.asarray(layer.bias)
    grid = layer.input_grid
    if grid is not None and grid.copies and form.splits_activations:
        kernel = repeat_inputs(kernel, grid.copies)
    copies = output_copies(layer, form)
    return split_outputs(kernel, bias, copies, layer.output_grid) if copies else (kernel, bias)


def with_copies_in_order(kernel: QuantizedKernel) -> QuantizedKernel:
    """The same kernel with its copies in the order of their channels: neighbours are one slice."""
    channels, mapping = kernel.channels, kernel.channel_map
    order = np.argsort(mapping[channels:], kind="stable") + channels
    rows = np.concatenate([np.arange(channels), order])
    return dataclasses.replace(kernel, codes=kernel.codes[..., rows, :], channel_map=mapping[rows])


def output_copies(layer: keras.layers.Layer, form: Form) -> tuple[int, ...]:
    grid = layer.output_grid
    return grid.copies if grid is not None and form.splits_activations else ()


def with_norm(
    layer: layers.KernelLayer, norm: keras.layers.Layer | None, form: Form
) -> tuple[QuantizedKernel, np.ndarray | None]:
    """Kernel in the layer's layout, and bias, with a following batch norm folded into them."""
    kernel, bias = quantized(layer, form)
    if norm is None:
        return kernel, bias
    # A factor per output channel rescales that channel's step.
    gain, shift = affine(norm, layer.output_channels)
    bias = (shift + gain * (0 if bias is None else bias)).astype(np.float32)
    wanted = (kernel.scale * gain).astype(np.float32)
    if form.code_limit(layer.weight_bits, adapter_of(layer).kind) is None:
        return dataclasses.replace(kernel, scale=wanted), bias
    # Steps of integer kernels are positive: a negative factor turns the codes around, which a
    # symmetric grid allows.
    scale = steps(wanted)
    factor = wanted / scale  # 1 or -1, but for a channel that is all but dead
    factor = factor.reshape(kernel.codes.shape[-2:]) if is_depthwise(layer) else factor
    codes = np.rint(kernel.codes * factor).astype(np.int8)
    return dataclasses.replace(kernel, codes=codes, scale=scale), bias


def as_float(kernel: QuantizedKernel, layer: keras.layers.Layer) -> np.ndarray:
    """The effective kernel in float32, in the layout of the quantized `layer`'s codes."""
    codes = kernel.effective_codes()
    scale = kernel.scale
    if is_depthwise(layer, scale):
        scale = scale.reshape(codes.shape[-2:])
    return codes.astype(np.float32) * scale


def steps(values: np.ndarray) -> np.ndarray:
    """Magnitudes of `values` as float32 steps, none so small that an int32 bias overflows."""
    magnitudes = np.abs(values)
    largest = magnitudes.max(initial=0.0) or 1.0
    return np.maximum(magnitudes, largest * SMALLEST_CHANNEL).astype(np.float32)


def in_two_dimensions(codes: np.ndarray, kind: str) -> np.ndarray:
    """`codes` of a convolution, as the converter has it: one dimension is the second of two."""
    return codes[None] if kind in _CONVOLUTIONS and codes.ndim == 3 else codes


def is_depthwise(layer: keras.layers.Layer, scale: np.ndarray | None = None) -> bool:
    """Whether `layer` keeps its output channels on two axes (and `scale`, if given, has both)."""
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    return isinstance(layer, depthwise) and (scale is None or scale.ndim > 0)
