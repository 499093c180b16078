"""Verification of a written .tflite file: its codes and scales against those of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import int4
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.grid_rules import Grid, fixed_output_grid, grid_rule
from ocs_tf.export.kernel_matching import (
    KERNEL_INPUTS,
    ExportKernel,
    bias_input,
    computing_operators,
    kernel_input,
    layout,
    stored_kernels,
)

_SUM_STEPS = 2**20


def verify(
    model: Any,
    result: Any,
    assigned: Mapping[fb.Place, ExportKernel],
    grids: Mapping[str, Grid],
    float_io: bool,
    left_float: Collection[int] = (),
    unrounded: Collection[str] = (),
) -> None:
    """Raise VerificationError unless `result` is the float `model` in integers, as was given."""
    float_ops = computing_operators(model.subgraphs[0], model)
    _verify_operators(model, result)
    computing = computing_operators(result.subgraphs[0], result)
    for index, (float_op, op) in enumerate(zip(float_ops, computing, strict=True)):
        if index in left_float:
            _verify_float(result, op, assigned.get((0, index)))
            continue
        _verify_integer(result, op)
        if fb.op_name(result, op) in KERNEL_INPUTS:
            _verify_bias(model, float_op, result, op, assigned.get((0, index)))
    _verify_kernels(result, assigned)
    _verify_borders(model, result, float_io, unrounded)
    fixed = _fixed(model)
    producers = {
        fb.name(model.subgraphs[0].tensors[i]): fb.op_name(model, op)
        for op in model.subgraphs[0].operators
        for i in op.outputs
    }
    for name, grid in grids.items():
        _verify_activation(result, name, grid, fixed.get(name), producers.get(name))


def verify_weights(
    model: Any, result: Any, assigned: Mapping[fb.Place, ExportKernel], dynamic: bool
) -> None:
    """Raise VerificationError unless `result` is the float `model` but for the kernels given.

    Arguments:
        model: the float model.
        result: what was written.
        assigned: kernels by operator.
        dynamic: operators read the codes themselves; otherwise, and those in three dimensions,
            what a DEQUANTIZE makes of them. Lookups read codes in any case.
    """
    _verify_operators(model, result)
    _verify_kernels(result, assigned)
    for subgraph, (before, after) in enumerate(zip(model.subgraphs, result.subgraphs, strict=True)):
        ops = zip(before.operators, computing_operators(after, result), strict=True)
        for index, (float_op, op) in enumerate(ops):
            kernel = kernel_input(model, float_op) if (subgraph, index) in assigned else None
            for wanted, found in zip(float_op.inputs, op.inputs, strict=True):
                if wanted == kernel:
                    kind = fb.op_name(result, op)
                    reads_codes = kind == "GATHER" or (dynamic and "3D" not in kind)
                    _verify_reading(result, op, after.tensors[found], reads_codes)
                elif wanted >= 0:  # an optional input may be missing
                    tensors = before.tensors[wanted], after.tensors[found]
                    _verify_unchanged(model, result, *tensors)


def _verify_operators(model: Any, result: Any) -> None:
    for before, after in zip(model.subgraphs, result.subgraphs, strict=True):
        names = [fb.op_name(model, op) for op in computing_operators(before, model)]
        if names != [fb.op_name(result, op) for op in computing_operators(after, result)]:
            raise VerificationError(
                "the written operators are not those of the float model, in order"
            )


def _verify_integer(result: Any, op: Any) -> None:
    """No float tensor may touch a computing operator; a SHAPE computes nothing."""
    tensors = result.subgraphs[0].tensors
    if fb.op_name(result, op) == "SHAPE":
        return
    if any(i >= 0 and tensors[i].type == fb.FLOAT32 for i in (*op.inputs, *op.outputs)):
        raise VerificationError(
            f"operator {fb.op_name(result, op)} computing {fb.name(tensors[op.outputs[0]])!r} is"
            " left in float: it has no int8 form"
        )
    if fb.op_name(result, op) in ("ADD", "SUB"):
        _verify_sum(result, op)


def _verify_sum(result: Any, op: Any) -> None:
    """Runtimes end the process at a sum whose factor, in float32, is not between 0 and 1.

    `CalculateOpData` of tensorflow/lite/kernels/add.cc: sums have 2^20 steps to one of the output.
    """
    tensors = result.subgraphs[0].tensors
    grids = [fb.grid(tensors[i]) for i in (*op.inputs, op.outputs[0])]
    steps = [np.float32(grid[0][0]) for grid in grids if grid is not None]
    if len(steps) < len(grids):
        return  # of integers: indices, say
    *inputs, output = steps
    with np.errstate(over="ignore"):
        factor = 2 * max(inputs) / (np.float32(_SUM_STEPS) * output)
    if not 0 < factor < 1:
        raise VerificationError(
            f"operator {fb.op_name(result, op)} computing {fb.name(tensors[op.outputs[0]])!r} adds"
            f" numbers in steps of up to {max(inputs):.3g} to ones in steps of {output:.3g}, which"
            " runtimes cannot. Scale the large ones down, or export with activations='float'"
        )


def _verify_float(result: Any, op: Any, kernel: ExportKernel | None) -> None:
    """All that it reads and makes is float, a dequantized kernel, too."""
    tensors = result.subgraphs[0].tensors
    where = f"operator {fb.op_name(result, op)} computing {fb.name(tensors[op.outputs[0]])!r}"
    if kernel is not None:
        _verify_reading(result, op, tensors[kernel_input(result, op)], dynamic=False)
    touched = [tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
    if any(fb.type_name(tensor) == "int8" and fb.grid(tensor) for tensor in touched):
        raise VerificationError(f"{where} is to be left in float, but reads or makes int8")


def _verify_kernels(result: Any, assigned: Mapping[fb.Place, ExportKernel]) -> None:
    """The operators' weights are the kernels' codes and scales, bit for bit."""
    for op, weights, kernel in stored_kernels(result, assigned):
        where = f"kernel of layer {kernel.layer!r}: tensor {fb.name(weights)!r}"
        placed, grid = layout(kernel, fb.op_name(result, op)), fb.grid(weights)
        assert placed is not None  # it was assigned
        if fb.type_name(weights) != f"int{kernel.bits}" or grid is None:
            found = fb.type_name(weights)
            raise VerificationError(f"{where} is {found}, not int{kernel.bits}")
        wrong = int(np.count_nonzero(int4.codes_of(result, weights) != placed[0]))
        if wrong:
            raise VerificationError(f"{where}: {wrong} of {kernel.codes.size} codes differ")
        scale, zero_point = grid
        given = np.broadcast_to(kernel.scale, scale.shape)
        if not np.array_equal(scale, given) or zero_point.any():
            raise VerificationError(
                f"{where}: scale {scale} and zero point {zero_point}, given {kernel.scale} and 0"
            )


def _verify_reading(result: Any, op: Any, weights: Any, dynamic: bool) -> None:
    """The operator reads codes if it is to compute with integers, and float otherwise."""
    if (weights.type == fb.FLOAT32) == dynamic:
        raise VerificationError(
            f"operator {fb.op_name(result, op)} reads the {fb.type_name(weights)} tensor"
            f" {fb.name(weights)!r}, with dynamic={dynamic}"
        )


def _verify_unchanged(model: Any, result: Any, old: Any, new: Any) -> None:
    """A tensor is of the type that it had and, if it was a constant, has the same values."""
    data = model.buffers[old.buffer].data, result.buffers[new.buffer].data
    if old.type != new.type or not np.array_equal(*data):
        raise VerificationError(f"tensor {fb.name(old)!r} has no given kernel, but has changed")


def _verify_bias(
    model: Any, float_op: Any, result: Any, op: Any, kernel: ExportKernel | None
) -> None:
    """The int32 bias holds the float bias to within one of its steps: it has not overflowed."""
    index, float_index = bias_input(result, op), bias_input(model, float_op)
    if index is None or float_index is None:
        return
    bias = result.subgraphs[0].tensors[index]
    grid = fb.grid(bias)
    given = fb.constant(model, model.subgraphs[0].tensors[float_index]).astype(np.float64)
    step = np.ones(1) if grid is None else grid[0].astype(np.float64)
    if np.any(np.abs(fb.constant(result, bias) * step - given) > step + 1e-6 * np.abs(given)):
        layer = "of a layer in float" if kernel is None else f"of layer {kernel.layer!r}"
        raise VerificationError(
            f"bias {layer} ({fb.name(bias)!r}): values up to {np.max(np.abs(given)):.6g} do not fit"
            f" int32 in steps of input scale x kernel scale (down to {step.min():.3g}). Quantize"
            " the layer, or make its weights larger and its bias smaller."
        )


def _verify_borders(model: Any, result: Any, float_io: bool, unrounded: Collection[str]) -> None:
    """Floats that are read or put out are float32 or int8, as asked; others keep their type."""
    before, graph = model.subgraphs[0], result.subgraphs[0]
    read = {index for op in graph.operators for index in op.inputs}
    ends = zip((*before.inputs, *before.outputs), (*graph.inputs, *graph.outputs), strict=True)
    for number, (old, new) in enumerate(ends):
        given, tensor = before.tensors[old], graph.tensors[new]
        if number < len(graph.inputs) and new not in read:
            continue
        wanted = "float32" if float_io or fb.name(tensor) in unrounded else "int8"
        if given.type != fb.FLOAT32:
            wanted = fb.type_name(given)
        if fb.type_name(tensor) != wanted:
            raise VerificationError(
                f"input or output {fb.name(tensor)!r} is {fb.type_name(tensor)}, not {wanted}"
            )


def _fixed(model: Any) -> dict[str, tuple[float, int]]:
    """Grids that TFLite fixes, by tensor name, followed through what only moves the data."""
    tensors = model.subgraphs[0].tensors
    fixed: dict[str, tuple[float, int]] = {}
    for op in model.subgraphs[0].operators:
        kind = fb.op_name(model, op)
        grid = fixed_output_grid(kind)
        if grid is None and grid_rule(kind) == "input":
            inherited = (fixed.get(fb.name(tensors[i])) for i in op.inputs if i >= 0)
            grid = next((g for g in inherited if g is not None), None)
        if grid is not None:
            fixed.update((fb.name(tensors[i]), grid) for i in op.outputs)
    return fixed


def _verify_activation(
    result: Any, name: str, grid: Grid, fixed: tuple[float, int] | None, producer: str | None
) -> None:
    """The tensor has the given grid, or the one that TFLite fixes for it."""
    expected = fixed or (grid.scale, grid.zero_point)
    found = list(_grids_of(result, name))
    if expected in found:
        return
    if grid_rule(producer or "") == "input":
        rule = f"{producer} takes its input's grid"
    else:
        rule = "a CONCATENATION or the like that alone reads it sets its grid"
    raise VerificationError(
        f"activation {name!r}: (scale, zero point) {found[0] if found else 'none'} in the file,"
        f" given {expected} ({rule}; see grid_rule)"
    )


def _grids_of(result: Any, name: str) -> Iterator[tuple[float, int]]:
    """The grid of a tensor; of a float input, those of the QUANTIZE operators that read it."""
    graph = result.subgraphs[0]
    index = next(i for i, tensor in enumerate(graph.tensors) if fb.name(tensor) == name)
    readers = [
        op.outputs[0]
        for op in graph.operators
        if fb.op_name(result, op) == "QUANTIZE" and op.inputs[0] == index
    ]
    for i in [index] if fb.grid(graph.tensors[index]) else readers:
        grid = fb.grid(graph.tensors[i])
        if grid is not None and fb.type_name(graph.tensors[i]) == "int8":
            yield float(grid[0][0]), int(grid[1][0])
