"""Adaptive pooling, whose windows are found from the sizes of its input, as ordinary pooling."""

from __future__ import annotations

from typing import Any

import keras

from ocs_tf.graph.layer_traits import holds, keras_class

_LAYERS: Any = keras.layers
# Not every version of Keras has the adaptive ones. TFLite pools in up to two dimensions.
_ORDINARY = {
    f"Adaptive{kind}Pooling{rank}D": (f"{kind}Pooling{rank}D", f"Global{kind}Pooling{rank}D")
    for kind in ("Average", "Max")
    for rank in (1, 2)
}


def as_one_operator(
    layer: keras.layers.Layer, shape: tuple[int | None, ...]
) -> keras.layers.Layer | None:
    """An adaptive pooling as a layer that a converter writes as a single operator, if there is one.

    Keras pools once for each axis and size of window, and gathers. Windows of one size, side by
    side, are those of an ordinary pooling.

    Arguments:
        shape: of the input.
    """
    cls = keras_class(layer)
    if cls is None or cls.__name__ not in _ORDINARY or layer.data_format != "channels_last":
        return None
    sizes, pooled = shape[1:-1], tuple(layer.output_size)
    if any(size is None or size % into for size, into in zip(sizes, pooled, strict=True)):
        return None
    windows, everything = _ORDINARY[cls.__name__]
    options = {"name": layer.name, "dtype": layer.dtype_policy, "data_format": "channels_last"}
    if not holds(layer, "keeps_grid"):
        return getattr(_LAYERS, everything)(keepdims=True, **options)
    window = [size // into for size, into in zip(sizes, pooled, strict=True) if size is not None]
    pool = window if len(window) > 1 else window[0]
    return getattr(_LAYERS, windows)(pool, **options)
