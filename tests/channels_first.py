"""Running `channels_first` layers on any CPU: TensorFlow's own kernels for them need oneDNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def is_channels_first(function: Any) -> bool:
    """Whether a layer, or the first layer of a model, is `channels_first`."""
    layers = getattr(function, "layers", None) or [function]
    return any(getattr(layer, "data_format", None) == "channels_first" for layer in layers)


def run(function: Any, x: Any) -> np.ndarray:
    """What a layer or model makes of `x`; XLA, which takes any layout, where it is needed."""
    if is_channels_first(function):
        function = tf.function(function, jit_compile=True, autograph=False)
    return np.asarray(function(x))
