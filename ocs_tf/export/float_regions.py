"""Regions of an int8 file that stay in float32, around operators without an integer form.

The Keras model computes a layer in float and rounds its output. If one operator of a layer has no
integer form, all of the layer is computed like that in the file, too: from a tensor on a grid,
behind a DEQUANTIZE, to the next one, in front of a QUANTIZE.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import Grid, grid_rule

# Operators that ai-edge-quantizer writes with int8 activations: "static_wi8_ai8" in its
# default_policy.py, by their names in the schema.
_INTEGER_FORMS = """
    ADD AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CONCATENATION CONV_2D DEPTHWISE_CONV_2D DIV
    DYNAMIC_UPDATE_SLICE EQUAL FULLY_CONNECTED GATHER GATHER_ND GELU HARD_SWISH LOGISTIC MAXIMUM
    MAX_POOL_2D MEAN MIRROR_PAD MUL NOT_EQUAL PACK PAD PADV2 REDUCE_MIN RELU RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SLICE SOFTMAX SPACE_TO_DEPTH
    SPLIT SQRT SQUARED_DIFFERENCE STABLEHLO_COMPOSITE STRIDED_SLICE SUB SUM TANH TRANSPOSE
    TRANSPOSE_CONV UNPACK
"""
INTEGER_FORMS = frozenset(_INTEGER_FORMS.split())
_READS_NO_NUMBERS = ("SHAPE",)
_MOVES_NUMBERS = ("REVERSE_V2", "TILE")  # it does not matter whether before or behind it is rounded

AnyGrid = TypeVar("AnyGrid", bound=Grid)


def float_operators(
    model: Any,
    on_grids: Iterable[str],
    unrounded: Collection[str] = (),
    others: Collection[int] = (),
) -> set[int]:
    """Indices of the operators of a float model that are to stay in float.

    Arguments:
        model: as `_flatbuffer.read` returns it.
        on_grids: names of the activation tensors that are rounded in any case.
        unrounded: names of the inputs and outputs that are not.
        others: operators that are to stay in float although they have an integer form.
    """
    graph = model.subgraphs[0]
    activations = set(fb.float_activations(model).values())
    border = _border(model, set(on_grids), unrounded)
    left = {
        index
        for index, op in enumerate(graph.operators)
        if (index in others or fb.op_name(model, op) not in (*INTEGER_FORMS, *_READS_NO_NUMBERS))
        and any(i in activations for i in (*op.inputs, *op.outputs))
    }
    ends = {i for i in graph.outputs if fb.name(graph.tensors[i]) in unrounded}
    left |= {index for index, op in enumerate(graph.operators) if ends & set(op.outputs)}
    touching: dict[int, list[int]] = {}
    for index, op in enumerate(graph.operators):
        for i in (*op.inputs, *op.outputs):
            touching.setdefault(i, []).append(index)
    waiting = list(left)
    while waiting:
        op = graph.operators[waiting.pop()]
        inside = {i for i in (*op.inputs, *op.outputs) if i in activations and i not in border}
        found = {index for i in inside for index in touching[i]} - left
        left |= found
        waiting.extend(found)
    return left


def inside(
    model: Any, left: Collection[int], on_grids: Iterable[str], unrounded: Collection[str] = ()
) -> set[str]:
    """Names of the tensors that only operators in float compute and read."""
    graph = model.subgraphs[0]
    border = _border(model, set(on_grids), unrounded)
    touched = {
        i
        for index in left
        for i in (*graph.operators[index].inputs, *graph.operators[index].outputs)
    }
    return {
        name for name, i in fb.float_activations(model).items() if i in touched and i not in border
    }


def _border(model: Any, on_grids: set[str], unrounded: Collection[str]) -> set[int]:
    """Indices of tensors that are rounded: as given, or as operators make them from such ones."""
    graph = model.subgraphs[0]
    activations = fb.float_activations(model)
    ends = {*graph.inputs, *graph.outputs}
    border = {
        i
        for name, i in activations.items()
        if name in on_grids or (i in ends and name not in unrounded)
    }
    for op in graph.operators:
        if fb.op_name(model, op) in _MOVES_NUMBERS:
            border.update(i for i in (*op.inputs, *op.outputs) if i in activations.values())
        if grid_rule(fb.op_name(model, op)) in ("input", "fixed") and op.inputs[0] in border:
            border.update(op.outputs)
        if fb.op_name(model, op) == "GATHER" and fb.is_constant(model, graph.tensors[op.inputs[0]]):
            looked_up = (i for i in op.outputs if i in activations.values())  # on the table's grid
            border.update(i for i in looked_up if fb.name(graph.tensors[i]) not in unrounded)
    return border


def touching(model: Any, names: Collection[str]) -> set[int]:
    """Indices of the operators that compute or read activations of these names."""
    chosen = {i for name, i in fb.float_activations(model).items() if name in names}
    operators = enumerate(model.subgraphs[0].operators)
    return {index for index, op in operators if chosen & {*op.inputs, *op.outputs}}


def index_operators(model: Any, unrounded: Collection[str]) -> set[int]:
    """Indices of the operators that only compute row numbers from inputs that are not rounded."""
    graph = model.subgraphs[0]
    activations = fb.float_activations(model)
    exact = {activations[name] for name in unrounded if activations[name] in list(graph.inputs)}
    found = set()
    for index, op in enumerate(graph.operators):
        read = {i for i in op.inputs if i in activations.values()}
        if read and read <= exact:
            found.add(index)
            exact.update(i for i in op.outputs if i in activations.values())
    return found


def regridding_operators(model: Any, grids: Mapping[str, Grid]) -> set[int]:
    """Indices of the operators between different grids, of which TFLite's have one grid.

    Keras' `ops.max_pool` is one: it is rounded to a grid of its own, behind that of its input.
    """
    graph = model.subgraphs[0]
    known = {i: grids[name] for name, i in fb.float_activations(model).items() if name in grids}
    found = set()
    for index, op in enumerate(graph.operators):
        kind, output = fb.op_name(model, op), op.outputs[0]
        rule = grid_rule(kind)
        if rule == "input" and op.inputs[0] in known:
            for i in op.outputs:
                known.setdefault(i, known[op.inputs[0]])
        if rule not in ("input", "output") or output not in known:
            continue
        read = [i for i in op.inputs if i in known]
        if rule == "output":
            read = [i for i in read if _follows(model, i)]
        elif fb.is_constant(model, graph.tensors[op.inputs[0]]):
            found.add(index)  # a table, whose grid comes of its own numbers
        if any(_differ(known[i], known[output]) for i in read):
            found.add(index)
    return found


def _follows(model: Any, index: int) -> bool:
    """Whether a tensor gets the grid of the one operator that reads it; see `grid_rule`."""
    operators = model.subgraphs[0].operators
    readers = [op for op in operators if index in list(op.inputs)]
    makers = [op for op in operators if index in list(op.outputs)]
    own = all(grid_rule(fb.op_name(model, op)) == "own" for op in makers)
    is_output = index in list(model.subgraphs[0].outputs)
    return len(readers) == 1 and bool(makers) and own and not is_output


def _differ(one: Grid, other: Grid) -> bool:
    return (one.scale, one.zero_point) != (other.scale, other.zero_point)


def moved(model: Any, grids: Mapping[str, AnyGrid]) -> dict[str, AnyGrid]:
    """The grids of tensors that are not in `grids` but hold the numbers of such as are.

    What an operator without an integer form moves is on the grid that it came from; what is resized
    inside of a layer (an image that was padded, say) is on that of the result.
    """
    graph = model.subgraphs[0]
    names = {i: name for name, i in fb.float_activations(model).items()}
    known = {i: grids[name] for i, name in names.items() if name in grids}
    found: dict[str, AnyGrid] = {}
    for op in graph.operators:
        kind = fb.op_name(model, op)
        moves = kind in _MOVES_NUMBERS
        for i in op.outputs if moves or grid_rule(kind) == "input" else ():
            if op.inputs[0] in known and i not in known and i in names:
                known[i] = known[op.inputs[0]]
                found |= {names[i]: known[i]} if moves else {}
    resized: set[int] = set()
    for op in reversed(graph.operators):
        kind = fb.op_name(model, op)
        inside = op.outputs[0] in resized and grid_rule(kind) in ("input", "output")
        for i in op.inputs if kind.startswith("RESIZE_") or inside else ():
            if op.outputs[0] in known and i not in known and i in names:
                known[i] = found[names[i]] = known[op.outputs[0]]
                resized.add(i)
    return found


def describe(
    model: Any,
    left: Collection[int],
    regridding: Collection[int],
    layers: Collection[str],
    matches: Mapping[str, str],
) -> str:
    """A note that names the layers in float, and the reason; or no text.

    Arguments:
        model: as above.
        left: the operators in float, and
        regridding: those because of their grids.
        layers: names of all layers.
        matches: the layers that are known to make tensors, by the tensors' names.
    """
    graph = model.subgraphs[0]
    names: dict[str, None] = {}  # in order
    left = [i for i in sorted(left) if fb.op_name(model, graph.operators[i]) not in _MOVES_NUMBERS]
    if not left:
        return ""
    for index in left:
        tensor = fb.name(graph.tensors[graph.operators[index].outputs[0]])
        clear = max(layers, key=lambda layer: fb.name_affinity(tensor, layer))
        names[clear if fb.name_affinity(tensor, clear) else matches.get(tensor, tensor)] = None
    kinds = {fb.op_name(model, graph.operators[index]) for index in left} - INTEGER_FORMS
    one_grid = {fb.op_name(model, graph.operators[index]) for index in left if index in regridding}
    reasons = []
    if kinds:
        reasons.append(f"{_listed(kinds)} {'has' if len(kinds) == 1 else 'have'} no int8 form")
    if one_grid:
        reasons.append(f"inputs and output of {_listed(one_grid)} would have to share a grid")
    reason = " and ".join(reasons) or "they read indices, which are not rounded"
    return (
        f"{len(names)} {'layer is' if len(names) == 1 else 'layers are'} computed in float, since"
        f" {reason}: {', '.join(names)}."
    )


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds))


def round_between(model: Any, grids: Mapping[str, Grid]) -> None:
    """Round to its grid what an operator in float computes for another one, or as an output."""
    graph = model.subgraphs[0]
    for index, tensor in list(enumerate(graph.tensors)):
        grid = grids.get(fb.name(tensor))
        readers = [
            op
            for op in graph.operators
            if index in list(op.inputs) and fb.op_name(model, op) not in ("QUANTIZE", "SHAPE")
        ]
        is_output = index in list(graph.outputs)
        if grid is None or tensor.type != fb.FLOAT32 or not (readers or is_output):
            continue
        if any(
            fb.op_name(model, op) == "DEQUANTIZE" for op in graph.operators if index in op.outputs
        ):
            continue
        codes = twin(graph, index, "codes")
        codes.type = schema.TensorType.INT8
        codes.quantization = schema.QuantizationParametersT()
        codes.quantization.scale, codes.quantization.zeroPoint = [grid.scale], [grid.zero_point]
        twin(graph, index, "rounded")
        rounded = len(graph.tensors) - 1
        for op in readers:
            op.inputs = [rounded if i == index else i for i in op.inputs]
        if is_output:
            fb.replace_output(model, index, rounded)
        where = next((n + 1 for n, op in enumerate(graph.operators) if index in op.outputs), 0)
        graph.operators[where:where] = [
            border_operator(model, "QUANTIZE", index, len(graph.tensors) - 2),
            border_operator(model, "DEQUANTIZE", len(graph.tensors) - 2, len(graph.tensors) - 1),
        ]


def free_ends(model: Any, quantized: Any, unrounded: Collection[str]) -> None:
    """Let these inputs and outputs be float32, without the operators between types at them.

    Arguments:
        model: the float model.
        quantized: the same in integers; it is changed.
        unrounded: names of inputs and outputs of `model`.
    """
    before, graph = model.subgraphs[0], quantized.subgraphs[0]
    for old, index in zip(before.inputs, list(graph.inputs), strict=True):
        if fb.name(before.tensors[old]) in unrounded and graph.tensors[index].type != fb.FLOAT32:
            graph.tensors[index].type, graph.tensors[index].quantization = fb.FLOAT32, None
            for border in [op for op in graph.operators if list(op.inputs) == [index]]:
                if fb.op_name(quantized, border) == "DEQUANTIZE":
                    graph.operators.remove(border)
                    for op in graph.operators:
                        op.inputs = [index if i == border.outputs[0] else i for i in op.inputs]
    for old, index in zip(before.outputs, list(graph.outputs), strict=True):
        if fb.name(before.tensors[old]) in unrounded and graph.tensors[index].type != fb.FLOAT32:
            border = next(op for op in graph.operators if list(op.outputs) == [index])
            graph.operators.remove(border)
            fb.replace_output(quantized, index, int(border.inputs[0]))


def integer_outputs(model: Any, quantized: Any, unrounded: Collection[str]) -> None:
    """Let outputs be codes where they became the floats that operators in float read.

    Arguments: as for `free_ends`.
    """
    before, graph = model.subgraphs[0], quantized.subgraphs[0]
    codes = {
        op.outputs[0]: int(op.inputs[0])
        for op in graph.operators
        if fb.op_name(quantized, op) == "DEQUANTIZE"
    }
    for old, index in zip(before.outputs, list(graph.outputs), strict=True):
        if fb.name(before.tensors[old]) not in unrounded and index in codes:
            fb.replace_output(quantized, index, codes[index])


def dequantize_outputs(model: Any) -> None:
    """Let outputs be float32: ai-edge-quantizer cannot where operators read them, too."""
    graph = model.subgraphs[0]
    for index in dict.fromkeys(graph.outputs):
        if fb.type_name(graph.tensors[index]) == "int8":
            values = twin(graph, index, "values")
            values.type, values.quantization = fb.FLOAT32, None
            made = len(graph.tensors) - 1
            graph.operators.append(border_operator(model, "DEQUANTIZE", index, made))
            fb.replace_output(model, index, made)


def twin(graph: Any, index: int, suffix: str) -> Any:
    """A new tensor like that of `index`, at the end."""
    tensor = copy.copy(graph.tensors[index])
    tensor.name = f"{fb.name(tensor)};{suffix}".encode()
    tensor.buffer = 0
    graph.tensors.append(tensor)
    return tensor


def border_operator(model: Any, kind: str, given: int, made: int) -> Any:
    """A new operator between types."""
    op = schema.OperatorT()
    op.opcodeIndex = fb.operator_code(model, getattr(schema.BuiltinOperator, kind))
    op.inputs, op.outputs = [given], [made]
    op.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind.capitalize()}Options")
    op.builtinOptions = getattr(schema, f"{kind.capitalize()}OptionsT")()
    return op
