"""What an export asks of a quantized model: its grids, and notes on them."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from ocs_tf.export.tensor_grids import check_step
from ocs_tf.graph.analysis.concatenations import describe
from ocs_tf.keras_internals import layers_within
from ocs_tf.layers import KernelLayer
from ocs_tf.numerics import ActivationGrid

_BITS = 8  # of activations in int8 files
_LARGEST_FACTOR = 256  # XNNPACK prepares no operator with a larger one


def activation_grids(model: keras.Model) -> Iterator[tuple[str, ActivationGrid]]:
    """Names of layers of a quantized model, with the grids that they round to."""
    for layer in layers_within(model):
        for attribute in ("grid", "output_grid", "preactivation_grid"):
            grid = getattr(layer, attribute, None)
            if isinstance(grid, ActivationGrid):
                yield layer.name, grid


def coarse_parts(model: keras.Model) -> Iterator[str]:
    """Notes on tensors that share a grid although their ranges differ."""
    bits = {name: grid.bits for name, grid in activation_grids(model)}
    for layer in layers_within(model):
        parts = getattr(layer, "coarse_parts", None)
        if parts and layer.name in bits:
            text = describe(layer.name, parts, 2 ** bits[layer.name])
            yield f"{text[0].upper()}{text[1:]}."


def has_grids(model: keras.Model) -> bool:
    """Whether activations of a quantized model are rounded."""
    return next(activation_grids(model), None) is not None


def check_grids(model: keras.Model) -> None:
    """Refuse activations that an int8 file cannot hold, before any work."""
    for name, grid in activation_grids(model):
        check_step(grid, f"layer {name!r}")
        if grid.bits != _BITS:
            raise ValueError(
                f"layer {name!r} has {grid.bits}-bit activations, which an int8 .tflite cannot"
                " hold. Convert with activation_bits=8 (or None, and pass representative_dataset"
                " here), or export with target='packed'."
            )
    for layer in layers_within(model):
        _check_factor(layer)


def _check_factor(layer: keras.layers.Layer) -> None:
    """Refuse a layer whose sums a runtime would have to multiply by too large a factor."""
    if not isinstance(layer, KernelLayer) or layer.input_grid is None:
        return
    grid = layer.preactivation_grid or layer.output_grid
    if grid is None:
        return
    factor = float(np.max(layer.scale)) * layer.input_grid.scale / grid.scale
    if factor >= _LARGEST_FACTOR:
        raise ValueError(
            f"layer {layer.name!r}: one product of its codes is {factor:.3g} steps of its output;"
            f" runtimes take less than {_LARGEST_FACTOR}. Its input's grid has steps of"
            f" {layer.input_grid.scale:.3g} and its output's of {grid.scale:.3g}: put the measured"
            " grids into the plan, or export with target='packed'."
        )
