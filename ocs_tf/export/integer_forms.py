"""Operators of a float file in the forms in which an int8 file holds them.

ai-edge-quantizer writes the scales of tensors by the rule of the operator that has them, and knows
some of the operators only. To it, the others go by the name of one with the same rule (see
`grid_rules`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_CODE_TO_NAME

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.float_regions import border_operator, differ, known_grids, twin
from ocs_tf.export.grid_rules import (
    INTEGER_FORMS,
    PRODUCTS,
    Grid,
    data_input,
    fixed_output_grid,
    grid_rule,
)
from ocs_tf.numerics import ActivationGrid

Range = tuple[float, float]

_BUILTIN = schema.BuiltinOperator
_STAND_INS = {
    "own": _BUILTIN.ADD,
    "input": _BUILTIN.MAX_POOL_2D,
    "output": _BUILTIN.MAXIMUM,
    "fixed": _BUILTIN.ADD,
}


def in_integer_forms(
    model: Any,
    grids: Mapping[str, Grid],
    ranges: Mapping[str, Range],
    left_float: Collection[int],
) -> tuple[dict[str, Grid], dict[str, Range]]:
    """Give the operators of a float model, which is changed, the forms that they have in integers.

    NEG and SQUARE become products: LiteRT's int8 NEG ignores zero points, and there is no SQUARE.
    Where `grids` has two grids for tensors that share one in TFLite, a QUANTIZE rounds from one
    to the other; it comes behind all other operators, whose indices stay. `restore` sorts them.

    Arguments:
        model: as `flatbuffer.read` returns it.
        grids: of activations, by name.
        ranges: of other activations.
        left_float: indices of the operators that stay in float, and as they are.

    Returns:
        `grids` and `ranges`, with those of new tensors.
    """
    operators = list(model.subgraphs[0].operators)
    for index, op in enumerate(operators):
        if index not in left_float and fb.op_name(model, op) in PRODUCTS:
            _multiply(model, op)
    grids, ranges = dict(grids), dict(ranges)
    for index, tensor in list(_regridded(model, grids, ranges)):
        if index in left_float:
            continue
        kept, output = _requantize(model, operators[index], tensor)
        if output in grids:
            grids[kept] = grids[output]
        elif output in ranges:
            ranges[kept] = ranges[output]
    return grids, ranges


def _regridded(
    model: Any, grids: Mapping[str, Grid], ranges: Mapping[str, Range]
) -> Iterator[tuple[int, int]]:
    """Operators, of which TFLite's have one grid, with the tensors that have another in `grids`.

    By their indices: the output where it has the grid of the input, and inputs where they have that
    of the output.
    """
    measured = {name: ActivationGrid.from_range(*ends, 8) for name, ends in ranges.items()}
    given, known = known_grids(model, grids), known_grids(model, {**measured, **grids})
    for index, op in enumerate(model.subgraphs[0].operators):
        kind = fb.op_name(model, op)
        kept, unlike, tensors = None, False, []
        if grid_rule(kind) == "input":
            kept, tensors = known.get(op.inputs[data_input(kind)]), list(op.outputs)
            unlike = kept is None and _lacks(kind)  # fixed, or that of a table
        elif grid_rule(kind) == "output":
            kept = known.get(op.outputs[0])
            tensors = [i for i in dict.fromkeys(op.inputs) if _follows(model, i)]
        for i in tensors:
            if i in given and (unlike or (kept is not None and differ(given[i], kept))):
                yield index, i


def _follows(model: Any, index: int) -> bool:
    """Whether a tensor gets the grid of the one operator that reads it; see `grid_rule`."""
    operators = model.subgraphs[0].operators
    readers = [op for op in operators if index in list(op.inputs)]
    makers = [op for op in operators if index in list(op.outputs)]
    own = all(grid_rule(fb.op_name(model, op)) == "own" for op in makers)
    is_output = index in list(model.subgraphs[0].outputs)
    return len(readers) == 1 and bool(makers) and own and not is_output


def _multiply(model: Any, op: Any) -> None:
    """Make a product of a NEG or a SQUARE."""
    negates = fb.op_name(model, op) == "NEG"
    op.opcodeIndex = fb.operator_code(model, _BUILTIN.MUL)
    op.builtinOptionsType, op.builtinOptions = (
        schema.BuiltinOptions.MulOptions,
        schema.MulOptionsT(),
    )
    factor = _constant(model, op.outputs[0], -1.0) if negates else op.inputs[0]
    op.inputs = [op.inputs[0], factor]


def _constant(model: Any, beside: int, value: float) -> int:
    """A new scalar tensor, named after the tensor `beside`; its index."""
    graph = model.subgraphs[0]
    tensor = twin(graph, beside, "factor")
    tensor.shape, tensor.shapeSignature = [], None
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.frombuffer(np.float32(value).tobytes(), np.uint8)
    tensor.buffer = len(model.buffers) - 1
    return len(graph.tensors) - 1


def _requantize(model: Any, op: Any, tensor: int) -> tuple[str, str]:
    """Let `op` make, or read, a tensor on its own grid in the place of `tensor`.

    Returns the name of the new tensor, and that of the one whose grid it has.
    """
    graph = model.subgraphs[0]
    twin(graph, tensor, "kept")
    kept = len(graph.tensors) - 1
    if tensor in list(op.outputs):
        op.outputs = [kept if i == tensor else i for i in op.outputs]
        ends, like = (kept, tensor), ""
    else:
        op.inputs = [kept if i == tensor else i for i in op.inputs]
        ends, like = (tensor, kept), fb.name(graph.tensors[op.outputs[0]])
    graph.operators.append(border_operator(model, "QUANTIZE", *ends))
    return fb.name(graph.tensors[kept]), like


def known_to_quantizer(model: Any) -> Any:
    """`model` as ai-edge-quantizer is to see it: a copy, with stand-ins for what it does not know.

    `restore` puts the names back.
    """
    codes = [copy.copy(code) for code in model.operatorCodes]
    for code in codes:
        kind = fb.code_name(code)
        if _lacks(kind):
            stand_in = _STAND_INS[grid_rule(kind)]
            code.builtinCode = code.deprecatedBuiltinCode = stand_in
    shown = copy.copy(model)
    shown.operatorCodes = codes
    return shown


def restore(written: Any, model: Any) -> None:
    """Give the operators of what was written of `known_to_quantizer(model)` names and order."""
    for code, own in zip(written.operatorCodes, model.operatorCodes, strict=False):
        code.builtinCode, code.deprecatedBuiltinCode = own.builtinCode, own.deprecatedBuiltinCode
    fb.sort(written.subgraphs[0])


def needs_us(model: Any, indices: Iterable[int]) -> bool:
    """Whether ai-edge-quantizer could not write some of these operators of a float model."""
    graph = model.subgraphs[0]
    activations = set(fb.float_activations(model).values())
    operators = [graph.operators[index] for index in indices]
    kinds = {fb.op_name(model, op) for op in operators if activations & {*op.inputs, *op.outputs}}
    return any(kind in PRODUCTS or _lacks(kind) for kind in kinds)


def fixed_grids(model: Any) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the outputs whose grid is fixed, unknown to ai-edge-quantizer."""
    graph = model.subgraphs[0]
    found = {}
    for op in graph.operators:
        grid = fixed_output_grid(fb.op_name(model, op))
        if grid is not None and _lacks(fb.op_name(model, op)):
            found[fb.name(graph.tensors[op.outputs[0]])] = grid
    return found


def _lacks(kind: str) -> bool:
    """Whether ai-edge-quantizer does not know an operator with an integer form."""
    known = getattr(_BUILTIN, kind) in TFL_OP_CODE_TO_NAME
    return (kind in INTEGER_FORMS or kind == "QUANTIZE") and not known
