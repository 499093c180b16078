"""Layers that multiply each channel by a constant and add one: batch norms, scales, normalizations.

Behind a layer with a kernel they are folded into it, as converters do.
"""

from __future__ import annotations

import keras
import numpy as np

from ocs_tf.keras_internals import is_hidden_class

_LAYERS = keras.layers


def affine_axis(layer: keras.layers.Layer) -> int | None:
    """The axis of the channels that `layer` has factors for; `None` if it is no affine layer.

    A user's subclass is none: it may compute otherwise.
    """
    if type(layer) is _LAYERS.BatchNormalization:
        return int(layer.axis)
    if type(layer) is _LAYERS.Normalization:
        return -1 if all(size == 1 for size in np.shape(np.asarray(layer.mean))[:-1]) else None
    if type(layer) is _LAYERS.Rescaling:
        return -1 if max(np.ndim(layer.scale), np.ndim(layer.offset)) <= 1 else None
    return -1 if is_hidden_class(layer, "applications.convnext", "LayerScale") else None


def affine(layer: keras.layers.Layer, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Gain and shift of an affine layer at inference, float64 `[C]`: `y = gain * x + shift`."""
    if isinstance(layer, _LAYERS.BatchNormalization):
        return _of_batch_norm(layer)
    if isinstance(layer, _LAYERS.Normalization):
        gain, shift = _of_normalization(layer)
    elif isinstance(layer, _LAYERS.Rescaling):
        gain, shift = (np.asarray(v, np.float64) for v in (layer.scale, layer.offset))
    else:
        gain, shift = np.asarray(layer.gamma, np.float64), np.zeros(())
    return np.broadcast_to(gain, (channels,)).copy(), np.broadcast_to(shift, (channels,)).copy()


def _of_batch_norm(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    gain = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        gain = gain * np.asarray(norm.gamma, np.float64)
    shift = -mean * gain
    if norm.center:
        shift = shift + np.asarray(norm.beta, np.float64)
    return gain, shift


def _of_normalization(layer: keras.layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = (np.asarray(v, np.float64).reshape(-1) for v in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return deviation, mean
    return 1 / deviation, -mean / deviation
