"""Means and variances of activations without data: what batch norms say of their outputs.

Behind a batch norm, a channel has the mean `beta` and the standard deviation `gamma` (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2).
From there they are followed through the layers behind, taking values to be normally distributed and
those of different channels and branches to be independent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ocs_tf.graph import adapters
from ocs_tf.graph.affine import affine, affine_axis
from ocs_tf.graph.layer_traits import acts_elementwise, holds, holds_for, keras_class
from ocs_tf.graph.reader import Graph, Node

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]

_LAYERS = keras.layers
_QUANTILES = ndtri((np.arange(256) + 0.5) / 256)  # of the standard normal distribution
_FLAT = (_LAYERS.Flatten, _LAYERS.Reshape)


def channel_moments(graph: Graph) -> dict[int, Moments]:
    """Mean and variance of each channel (last axis) of tensors of the float model, by tensor id.

    float64 `[C]` each. Tensors that no batch norm tells of are left out.
    """
    known: dict[int, Moments] = {}
    for node in graph.nodes:
        if node.arguments is None or len(node.outputs) != 1:
            continue
        found = _of_call(node, [known.get(id(tensor)) for tensor in node.inputs])
        if found is not None and all(len(m) == node.outputs[0].shape[-1] for m in found):
            known[id(node.outputs[0])] = found
    return known


def trained_on(norm: keras.layers.Layer) -> Moments | None:
    """Mean and variance `[C]` of the inputs that a batch norm or `Normalization` was trained on.

    `None` if it was not trained.
    """
    if isinstance(norm, _LAYERS.BatchNormalization):
        mean, variance = norm.moving_mean, norm.moving_variance
    elif norm.invert or not norm.built or norm.mean is None or norm.axis in ((), None):
        return None
    else:
        mean, variance = norm.mean, norm.variance
    arrays = [keras.ops.convert_to_numpy(x).astype(np.float64).ravel() for x in (mean, variance)]
    untrained = not arrays[0].any() and bool((arrays[1] == 1).all())
    return None if untrained else (arrays[0], arrays[1])


def _of_call(node: Node, inputs: list[Moments | None]) -> Moments | None:
    layer = node.layer
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    kind = keras_class(layer)
    if kind is _LAYERS.BatchNormalization:
        return _of_batch_norm(layer, len(node.inputs[0].shape))
    if not inputs or any(moments is None for moments in inputs):
        return None
    means, variances = zip(*(moments for moments in inputs if moments is not None), strict=True)
    if kind is _LAYERS.Add:
        return np.sum(means, axis=0), np.sum(variances, axis=0)
    if kind is _LAYERS.Concatenate:
        last = layer.axis in (-1, len(node.inputs[0].shape) - 1)
        return (np.concatenate(means), np.concatenate(variances)) if last else None
    if len(inputs) > 1:
        return None
    mean, variance = means[0], variances[0]
    if affine_axis(layer) is not None:
        gain, shift = affine(layer, len(mean))
        return gain * mean + shift, np.square(gain) * variance
    if holds_for(node, "keeps_moments"):
        return mean, variance
    if kind in _FLAT:
        places, rest = divmod(node.outputs[0].shape[-1] or 0, len(mean))
        return None if rest else (np.tile(mean, places), np.tile(variance, places))
    if holds(layer, "elementwise") and not layer.weights:
        return _through(layer, mean, variance)
    adapter = adapters.adapter_for(layer)
    if adapter is None or not adapter.is_direct(layer):
        return None
    kernel, bias = adapter.read(layer)
    groups = adapter.groups(layer)
    mean_out = weighted_sums(kernel, mean, groups) + (0 if bias is None else bias)
    moments = mean_out, weighted_sums(np.square(kernel, dtype=np.float64), variance, groups)
    if adapters.is_linear(layer.activation):
        return moments
    return _through(layer.activation, *moments) if acts_elementwise(layer.activation) else None


def _of_batch_norm(norm: keras.layers.Layer, rank: int) -> Moments | None:
    if norm.axis not in (-1, rank - 1):
        return None
    channels = norm.moving_mean.shape[0]
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(channels)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(channels)
    # Variances below epsilon are normalized to less than gamma.
    variance = np.asarray(norm.moving_variance, np.float64)
    return beta, np.square(gamma) * variance / (variance + norm.epsilon)


def _through(
    function: Callable[[Any], Any], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> Moments:
    """Of an elementwise `function` of normally distributed values."""
    values = mean + np.sqrt(variance) * _QUANTILES[:, None]
    outputs = keras.ops.convert_to_numpy(function(values.astype(np.float32))).astype(np.float64)
    return outputs.mean(0), outputs.var(0)


def weighted_sums(
    kernel: NDArray[Any], values: NDArray[np.float64], groups: int
) -> NDArray[np.float64]:
    """Sums `[F]` of per-channel `values`, the same at all places, weighted by `[..., C, F]`."""
    weights = kernel.reshape(-1, *kernel.shape[-2:]).sum(0, dtype=np.float64)
    inputs = values.reshape(groups, -1)
    return np.einsum("gc,cgf->gf", inputs, weights.reshape(len(weights), groups, -1)).reshape(-1)
