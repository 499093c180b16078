"""Steps of kernels that leave room for the bias, which is int32 in steps of input times kernel.

A channel whose weights are zero, or tiny beside its bias (pruned; a batch norm with a small gamma),
has so small a step that the bias would overflow. What its weights add is less than a step of any
output then: they get the step that the bias needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.kernel_matching import ExportKernel, bias_input, computing_operators

_LARGEST = 2.0**30  # of a bias, in its steps; the sum of products needs room in int32, too


def wider_steps(
    model: Any, result: Any, assigned: Mapping[fb.Place, ExportKernel]
) -> dict[fb.Place, ExportKernel]:
    """The kernels that need larger steps for some output channels, with codes to match.

    Arguments:
        model: the float model.
        result: what became of it, with kernels `assigned`.
    """
    changed = {}
    before, after = model.subgraphs[0], result.subgraphs[0]
    pairs = zip(computing_operators(before, model), computing_operators(after, result), strict=True)
    for index, (float_op, op) in enumerate(pairs):
        kernel = assigned.get((0, index))
        bias = None if kernel is None else bias_input(model, float_op)
        if kernel is None or bias is None:
            continue
        data = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2}.get(fb.op_name(model, op), 0)
        grid = fb.grid(after.tensors[op.inputs[data]])
        if grid is not None:
            values = fb.constant(model, before.tensors[bias]).astype(np.float64)
            smallest = np.abs(values) / (_LARGEST * float(grid[0][0]))
            if np.any(kernel.scale < smallest):
                changed[0, index] = _widened(kernel, smallest)
    return changed


def _widened(kernel: ExportKernel, smallest: np.ndarray) -> ExportKernel:
    """`kernel` with steps of at least `smallest`, `[out]`, rounded to float32."""
    scale = np.broadcast_to(kernel.scale, smallest.shape)
    wider = np.maximum(scale, smallest.astype(np.float32))
    columns = kernel.codes.reshape(-1, kernel.channels)
    codes = np.rint(columns * (scale / wider)).astype(np.int8).reshape(kernel.codes.shape)
    return dataclasses.replace(kernel, codes=codes, scale=wider)
