"""Ranges of what the steps of an unrolled loop compute.

In the file each step is a copy of the cell's operators. Calibration data may hold few numbers for
one of them: no sequence that is so long, or always the same beginning. So a tensor has the range
that it has over all steps, as it would in a loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import Grid
from ocs_tf.keras_internals import layers_within

Ranges = dict[str, tuple[float, float]]
_SELECTS = ("SELECT", "SELECT_V2")
_CODES = (-128, 127)


def cell_names(model: keras.Model) -> set[str]:
    """Names of the cells of recurrent layers anywhere in `model`, and of the layers in them."""
    loops = [layer for layer in layers_within(model) if isinstance(layer, keras.layers.RNN)]
    return {str(layer.name) for loop in loops for layer in layers_within(loop.cell)}


def over_steps(
    model: Any, cells: Iterable[str], grids: Mapping[str, Grid], ranges: Mapping[str, Any]
) -> Ranges:
    """`ranges`; those of tensors inside of `cells` hold what other steps compute.

    Arguments:
        model: a file, as `flatbuffer.read` returns it, whose names are scopes: a cell `lstm_cell`
            is `lstm_cell`, `lstm_cell_1` and so on.
        cells: what `cell_names` returns.
        grids: of tensors that have no entry in `ranges`, by name.
    """
    scopes = sorted(map(fb.scope_name, cells), key=len, reverse=True)
    if not scopes:
        return dict(ranges)
    scope = re.compile(rf"(?<=/)({'|'.join(scopes)})(_\d+)?(?=/)")
    known: Ranges = {name: _ends(grid) for name, grid in grids.items()} | dict(ranges)
    alike: dict[str, list[str]] = {}
    for name in known:
        if scope.search(name):
            alike.setdefault(scope.sub(r"\1", name), []).append(name)
    for names in alike.values():
        together = _union([known[name] for name in names])
        known |= {name: together for name in names if name in ranges}
    _through_selects(model, ranges, known)
    return {name: known[name] for name in ranges}


def _through_selects(model: Any, ranges: Mapping[str, Any], known: Ranges) -> None:
    """Where a mask chooses between a new state and the last one, the range of both."""
    tensors = model.subgraphs[0].tensors
    for op in model.subgraphs[0].operators:
        output = fb.name(tensors[op.outputs[0]])
        if fb.op_name(model, op) in _SELECTS and output in ranges:
            chosen = [fb.name(tensors[index]) for index in op.inputs[1:]]
            known[output] = _union([known[name] for name in (output, *chosen) if name in known])


def _union(ranges: list[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _ends(grid: Grid) -> tuple[float, float]:
    low, high = ((code - grid.zero_point) * grid.scale for code in _CODES)
    return low, high
