"""Layers and operations that change the size of images: which repeat numbers, which mix them.

An integer runtime keeps the grid of what it resizes. Nearest neighbours are numbers of the input;
a bilinear mean is a new one, which is rounded to that grid.
"""

from __future__ import annotations

from typing import Any

import keras

_LAYERS = keras.layers
_OPTIONS = (
    "interpolation",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
    "fill_mode",
    "fill_value",
    "data_format",
    "antialias",
)


def repeats(layer: Any) -> bool:
    """Whether `layer` resizes to nearest neighbours."""
    whole = isinstance(layer, (_LAYERS.UpSampling1D, _LAYERS.UpSampling3D))
    return whole or _method(layer) == "nearest"


def interpolates(layer: Any) -> bool:
    """Whether `layer` resizes to bilinear means."""
    return _method(layer) == "bilinear"


def as_layer(operation: Any) -> Any:
    """A `keras.layers.Resizing` that does what a bare `keras.ops.image.resize` does."""
    options = {name: getattr(operation, name) for name in _OPTIONS}
    height, width = operation.size
    return _LAYERS.Resizing(height, width, **options, name=operation.name)


def as_one_operator(layer: Any, shape: tuple[int | None, ...]) -> Any:
    """`layer` in the form that a converter writes as a single operator, if it has one.

    A `keras.layers.UpSampling2D` to nearest neighbours becomes a `keras.layers.Resizing`; it would
    be written as a chain of reshapes and tiles.

    Arguments:
        shape: of the input.
    """
    if not isinstance(layer, _LAYERS.UpSampling2D) or not repeats(layer):
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


def is_bare(operation: Any) -> bool:
    """Whether `operation` is a `keras.ops.image.resize` that is no layer."""
    return not isinstance(operation, _LAYERS.Layer) and type(operation).__name__ == "Resize"


def fills(layer: Any) -> bool:
    """Whether `layer` puts numbers of its own, other than 0, around what it resizes."""
    if not (isinstance(layer, _LAYERS.Resizing) or is_bare(layer)) or not layer.pad_to_aspect_ratio:
        return False
    return bool(layer.fill_value != 0 or layer.fill_mode != "constant")


def _method(layer: Any) -> str | None:
    """How `layer` resizes, or `None` if it does not, or fills as well."""
    if not (isinstance(layer, (_LAYERS.UpSampling2D, _LAYERS.Resizing)) or is_bare(layer)):
        return None
    return None if fills(layer) else str(layer.interpolation)
