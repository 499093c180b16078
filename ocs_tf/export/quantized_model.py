"""What an export asks of a quantized model: its grids, and notes on them."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from ocs_tf.graph.analysis.concatenations import describe
from ocs_tf.keras_internals import layers_within
from ocs_tf.numerics import ActivationGrid

_BITS = 8  # of activations in int8 files


def activation_grids(model: keras.Model) -> Iterator[tuple[str, ActivationGrid]]:
    """Names of layers of a quantized model, with the grids that they round to."""
    for layer in layers_within(model):
        for attribute in ("grid", "output_grid", "preactivation_grid"):
            grid = getattr(layer, attribute, None)
            if isinstance(grid, ActivationGrid):
                yield layer.name, grid


def coarse_parts(model: keras.Model) -> Iterator[str]:
    """Notes on tensors that share a grid although their ranges differ."""
    for layer in layers_within(model):
        parts = getattr(layer, "coarse_parts", None)
        if parts:
            text = describe(layer.name, parts, 2**layer.grid.bits)
            yield f"{text[0].upper()}{text[1:]}."


def has_grids(model: keras.Model) -> bool:
    """Whether activations of a quantized model are rounded."""
    return next(activation_grids(model), None) is not None


def check_activation_bits(model: keras.Model) -> None:
    """Refuse activations that an int8 file cannot hold, before any work."""
    for name, grid in activation_grids(model):
        if grid.bits != _BITS:
            raise ValueError(
                f"layer {name!r} has {grid.bits}-bit activations, which an int8 .tflite cannot"
                " hold. Convert with activation_bits=8 (or None, and pass representative_dataset"
                " here), or export with target='packed'."
            )
