"""Layers and operations that change the size of images, in another form of the same function."""

from __future__ import annotations

from typing import Any

import keras

from ocs_tf.graph.layer_traits import holds, keras_class

_LAYERS = keras.layers
_OPTIONS = (
    "interpolation",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
    "fill_mode",
    "fill_value",
    "data_format",
)


def as_layer(operation: Any) -> keras.layers.Resizing:
    """A `keras.layers.Resizing` that does what a bare `keras.ops.image.resize` does."""
    options = {name: getattr(operation, name) for name in _OPTIONS}
    if operation.antialias:
        options["antialias"] = True  # no option of Keras 3.5
    height, width = operation.size
    return _LAYERS.Resizing(height, width, **options, name=operation.name)


def as_one_operator(
    layer: keras.layers.Layer, shape: tuple[int | None, ...]
) -> keras.layers.Resizing | None:
    """`layer` in the form that a converter writes as a single operator, if it has one.

    A `keras.layers.UpSampling2D` to nearest neighbours becomes a `keras.layers.Resizing`; it would
    be written as a chain of reshapes and tiles.

    Arguments:
        shape: of the input.
    """
    if keras_class(layer) is not _LAYERS.UpSampling2D or not holds(layer, "moves"):
        return None
    if layer.data_format != "channels_last" or None in shape[1:3]:
        return None
    height, width = (int(n) * by for n, by in zip(shape[1:3], layer.size, strict=True))  # type: ignore[arg-type]
    return _LAYERS.Resizing(
        height,
        width,
        interpolation="nearest",
        data_format="channels_last",
        name=layer.name,
        dtype=layer.dtype_policy,
    )


def is_bare(operation: keras.Operation) -> bool:
    """Whether `operation` is a `keras.ops.image.resize` that is no layer."""
    return not isinstance(operation, _LAYERS.Layer) and type(operation).__name__ == "Resize"
